"""Without the index of blobs' names, the largest of all: a name begins with its entry's digest.
Imports no application code.

Processes of the former release that are still open find entries by a blob's name as before, only
more slowly: they ask when they sweep.
"""

from __future__ import annotations

from alembic import op

revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Drop the index."""
    op.drop_index("ix_entries_blob", "entries")


def downgrade() -> None:
    """Make it again."""
    op.create_index("ix_entries_blob", "entries", ["blob"], unique=True)
