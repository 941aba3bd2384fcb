"""The index of seen prefixes, and SQLite's of digests' first bytes. Imports no application code.

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
    """Add the table, empty, and the index."""
    op.create_table(
        "sightings",
        sa.Column("id", sa.BigInteger().with_variant(sa.Integer, "sqlite"), primary_key=True),
        sa.Column("prefix", sa.LargeBinary(8), nullable=False),
    )
    op.create_index("ix_sightings_prefix", "sightings", ["prefix"], unique=True)
    if op.get_bind().dialect.name == "sqlite":
        op.create_index("ix_entries_head", "entries", [sa.text("substr(digest, 1, 4)")])


def downgrade() -> None:
    """Drop them: what was seen is seen again."""
    if op.get_bind().dialect.name == "sqlite":
        op.drop_index("ix_entries_head", "entries")
    op.drop_table("sightings")
