"""The tally of lookups. Imports no application code.

Processes of the former release that are still open do not know the table, and go on.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add the table, empty."""
    op.create_table(
        "lookups",
        sa.Column("tier", sa.String(64), primary_key=True),
        sa.Column("namespace", sa.Text, primary_key=True),
        sa.Column("fingerprint", sa.LargeBinary(32), primary_key=True),
        sa.Column("lookups", sa.BigInteger, nullable=False),
        sa.Column("found", sa.BigInteger, nullable=False),
        sa.Column("tokens_asked", sa.BigInteger, nullable=False),
        sa.Column("tokens_found", sa.BigInteger, nullable=False),
        sa.Column("seconds_found", sa.Double, nullable=False),
        sa.Column("since", sa.Double, nullable=False),
    )


def downgrade() -> None:
    """Drop it: counting begins anew."""
    op.drop_table("lookups")
