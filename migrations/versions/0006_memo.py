"""What a policy knows of an entry. Imports no application code.

Processes of the former release that are still open leave it empty.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add the column, empty."""
    op.add_column(
        "entries", sa.Column("memo", sa.Text, nullable=False, server_default=sa.text("''"))
    )


def downgrade() -> None:
    """Drop it: what is known is learnt again."""
    op.drop_column("entries", "memo")
