"""An index of a namespace's digests: where a budget of its own is full, what goes is the least of a
sample of them. Imports no application code.

Processes of the former release that are still open write as before and do not need it.
"""

from __future__ import annotations

from alembic import op

revision = "0008"
down_revision = "0007"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Make the index."""
    op.create_index("ix_entries_namespace_digest", "entries", ["namespace", "digest"])


def downgrade() -> None:
    """Drop it."""
    op.drop_index("ix_entries_namespace_digest", "entries")
