"""The first catalog: entries, departed, totals. Imports no application code."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None

SHARDS = 16


def upgrade() -> None:
    """Create the three tables, and the empty totals."""
    create_entries()
    create_departed()
    create_totals()


def create_entries() -> None:
    """One row per state."""
    op.create_table(
        "entries",
        sa.Column("digest", sa.LargeBinary(32), primary_key=True),
        sa.Column("n_tokens", sa.BigInteger, nullable=False),
        sa.Column("namespace", sa.Text, nullable=False),
        sa.Column("fingerprint", sa.LargeBinary(32), nullable=False),
        sa.Column("token_digest", sa.LargeBinary(32), nullable=False),
        sa.Column("schema_id", sa.Text, nullable=False),
        sa.Column("role", sa.String(16), nullable=False),
        sa.Column("blob", sa.String(128), nullable=False),
        sa.Column("blob_bytes", sa.BigInteger, nullable=False),
        sa.Column("state_bytes", sa.BigInteger, nullable=False),
        sa.Column("has_output", sa.Boolean, nullable=False),
        sa.Column("cost_s", sa.Double, nullable=False),
        sa.Column("created_at", sa.Double, nullable=False),
        sa.Column("used_at", sa.Double, nullable=False),
        sa.Column("hits", sa.BigInteger, nullable=False),
        sa.Column("score", sa.Double, nullable=False),
        sa.Column("pinned", sa.Boolean, nullable=False),
        sa.Column("expires_at", sa.Double),
        sa.Column("status", sa.String(16), nullable=False),
        sa.Column("reason", sa.Text, nullable=False),
        sa.Column("model", sa.Text, nullable=False),
        sa.Column("labels", sa.Text, nullable=False),
    )
    op.create_index("ix_entries_blob", "entries", ["blob"], unique=True)
    op.create_index("ix_entries_eviction", "entries", ["pinned", "score"])
    op.create_index("ix_entries_used_at", "entries", ["used_at", "digest"])
    op.create_index("ix_entries_token_digest", "entries", ["token_digest", "namespace"])
    op.create_index("ix_entries_model", "entries", ["namespace", "fingerprint"])
    op.create_index("ix_entries_expires_at", "entries", ["expires_at"])


def create_departed() -> None:
    """What is remembered of removed entries."""
    op.create_table(
        "departed",
        sa.Column("id", sa.BigInteger().with_variant(sa.Integer, "sqlite"), primary_key=True),
        sa.Column("digest", sa.LargeBinary(32), nullable=False),
        sa.Column("n_tokens", sa.BigInteger, nullable=False),
        sa.Column("reason", sa.Text, nullable=False),
        sa.Column("departed_at", sa.Double, nullable=False),
    )
    op.create_index("ix_departed_digest", "departed", ["digest"], unique=True)


def create_totals() -> None:
    """Sums over the entries, by shard of their digest."""
    totals = op.create_table(
        "totals",
        sa.Column("shard", sa.SmallInteger, primary_key=True, autoincrement=False),
        sa.Column("entries", sa.BigInteger, nullable=False),
        sa.Column("blob_bytes", sa.BigInteger, nullable=False),
        sa.Column("state_bytes", sa.BigInteger, nullable=False),
        sa.Column("quarantined", sa.BigInteger, nullable=False),
        sa.Column("pinned", sa.BigInteger, nullable=False),
    )
    nothing = {"entries": 0, "blob_bytes": 0, "state_bytes": 0, "quarantined": 0, "pinned": 0}
    op.bulk_insert(totals, [{"shard": shard, **nothing} for shard in range(SHARDS)])


def downgrade() -> None:
    """Drop the catalog. The blobs stay."""
    for table in ("totals", "departed", "entries"):
        op.drop_table(table)
