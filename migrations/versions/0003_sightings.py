"""The index of seen prefixes, SQLite's of digests' first bytes, of what expires in each namespace,
and the bytes of what is pinned. Imports no application code.

Processes of the former release that are still open do not know the table, and go on.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None

# The first byte of the digest, modulo 16: its second hex digit.
SHARD = {
    "sqlite": "instr('0123456789ABCDEF', substr(hex(substr(digest, 1, 1)), 2, 1)) - 1",
    "postgresql": "get_byte(digest, 0) % 16",
}


def upgrade() -> None:
    """Add the table, empty, the indexes and the sum."""
    op.create_table(
        "sightings",
        sa.Column("id", sa.BigInteger().with_variant(sa.Integer, "sqlite"), primary_key=True),
        sa.Column("prefix", sa.LargeBinary(12), nullable=False),
    )
    op.create_index("ix_sightings_prefix", "sightings", ["prefix"], unique=True)
    if op.get_bind().dialect.name == "sqlite":
        op.create_index("ix_entries_head", "entries", [sa.text("substr(digest, 1, 4)")])
    expires = sa.text("expires_at IS NOT NULL")
    op.create_index(
        "ix_entries_namespace_expires_at",
        "entries",
        ["namespace", "expires_at"],
        sqlite_where=expires,
        postgresql_where=expires,
    )
    sum_up_pinned_bytes()


def sum_up_pinned_bytes() -> None:
    """What no eviction removes, by namespace and by shard of the digest."""
    op.add_column(
        "namespace_totals",
        sa.Column("pinned_bytes", sa.BigInteger, nullable=False, server_default=sa.text("0")),
    )
    op.execute(
        "UPDATE namespace_totals SET pinned_bytes = (SELECT coalesce(sum(blob_bytes), 0) "  # noqa: S608
        "FROM entries WHERE pinned AND entries.namespace = namespace_totals.namespace "
        f"AND {SHARD[op.get_bind().dialect.name]} = namespace_totals.shard)"
    )


def downgrade() -> None:
    """Drop them: what was seen is seen again."""
    op.drop_column("namespace_totals", "pinned_bytes")
    op.drop_index("ix_entries_namespace_expires_at", "entries")
    if op.get_bind().dialect.name == "sqlite":
        op.drop_index("ix_entries_head", "entries")
    op.drop_table("sightings")
