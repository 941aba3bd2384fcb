"""The index of seen prefixes. Imports no application code.

Processes of the former release that are still open do not know the table, and go on.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add the table, empty."""
    op.create_table(
        "sightings",
        sa.Column("id", sa.BigInteger().with_variant(sa.Integer, "sqlite"), primary_key=True),
        sa.Column("prefix", sa.LargeBinary(8), nullable=False),
    )
    op.create_index("ix_sightings_prefix", "sightings", ["prefix"], unique=True)


def downgrade() -> None:
    """Drop it: what was seen is seen again."""
    op.drop_table("sightings")
