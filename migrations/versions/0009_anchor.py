"""Entries: the anchor of their key, and on PostgreSQL an index of it, which tells of a stretch of a
long prompt's keys at once that there are none. Imports no application code.

What is there already has none, as what processes of the former release write that are still open:
while there is any such entry, lookups of long prompts ask for each key, as before.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0009"
down_revision = "0008"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add the column and the index; what lies along no prompt needs no anchor of its own."""
    op.add_column("entries", sa.Column("anchor", sa.BigInteger))
    if op.get_bind().dialect.name == "postgresql":
        op.create_index("ix_entries_anchor", "entries", ["anchor"])
    op.execute("UPDATE entries SET anchor = 0 WHERE role = 'named'")


def downgrade() -> None:
    """Drop both."""
    if op.get_bind().dialect.name == "postgresql":
        op.drop_index("ix_entries_anchor", "entries")
    op.drop_column("entries", "anchor")
