"""Eviction by namespace, and leases. Imports no application code.

The totals move to a table of another name: a process of the former release that is still open
would add to every namespace's row at once; now its puts fail, and are dropped and counted.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None

SHARDS = 16
SUMS = ("entries", "blob_bytes", "state_bytes", "quarantined", "pinned")

# The first byte of the digest, modulo 16: its second hex digit.
SHARD = {
    "sqlite": "instr('0123456789ABCDEF', substr(hex(substr(digest, 1, 1)), 2, 1)) - 1",
    "postgresql": "get_byte(digest, 0) % 16",
}


def upgrade() -> None:
    """Add the column, the tables and the indexes, and sum up each namespace."""
    op.add_column(
        "entries",
        sa.Column("ancestor_tokens", sa.BigInteger, nullable=False, server_default=sa.text("0")),
    )
    op.drop_index("ix_entries_eviction", "entries")
    op.create_index("ix_entries_eviction", "entries", ["pinned", "status", "score"])
    op.create_index(
        "ix_entries_namespace_eviction", "entries", ["namespace", "pinned", "status", "score"]
    )
    if op.get_bind().dialect.name == "postgresql":
        op.create_index("ix_entries_lookup", "entries", ["digest"], postgresql_using="hash")
    create_namespace_totals()
    op.drop_table("totals")
    create_ageing()
    create_leases()


def create_namespace_totals() -> None:
    """Sums over the entries, by namespace and by shard of their digest."""
    op.create_table(
        "namespace_totals",
        sa.Column("namespace", sa.Text, primary_key=True),
        sa.Column("shard", sa.SmallInteger, primary_key=True, autoincrement=False),
        *sum_columns(),
    )
    shard = SHARD[op.get_bind().dialect.name]
    op.execute(
        f"INSERT INTO namespace_totals (namespace, shard, {', '.join(SUMS)}) "  # noqa: S608
        f"SELECT namespace, {shard}, count(*), sum(blob_bytes), sum(state_bytes), "
        "sum(CASE WHEN status = 'quarantined' THEN 1 ELSE 0 END), "
        "sum(CASE WHEN pinned THEN 1 ELSE 0 END) "
        f"FROM entries GROUP BY namespace, {shard}"
    )


def sum_columns() -> list[sa.Column[int]]:
    """The columns that hold a sum."""
    return [sa.Column(name, sa.BigInteger, nullable=False) for name in SUMS]


def create_ageing() -> None:
    """One row."""
    ageing = op.create_table(
        "ageing",
        sa.Column("id", sa.SmallInteger, primary_key=True, autoincrement=False),
        sa.Column("age", sa.Double, nullable=False),
    )
    op.bulk_insert(ageing, [{"id": 0, "age": 0.0}])


def create_leases() -> None:
    """One row per key that is being computed, or was a moment ago."""
    op.create_table(
        "leases",
        sa.Column("digest", sa.LargeBinary(32), primary_key=True),
        sa.Column("owner", sa.Text, nullable=False),
        sa.Column("outcome", sa.String(16), nullable=False),
        sa.Column("expires_at", sa.Double, nullable=False),
    )
    op.create_index("ix_leases_expires_at", "leases", ["expires_at"])


def downgrade() -> None:
    """Back to one total per shard."""
    op.drop_table("leases")
    op.drop_table("ageing")
    totals = op.create_table(
        "totals",
        sa.Column("shard", sa.SmallInteger, primary_key=True, autoincrement=False),
        *sum_columns(),
    )
    op.bulk_insert(totals, [{"shard": shard, **dict.fromkeys(SUMS, 0)} for shard in range(SHARDS)])
    for name in SUMS:
        op.execute(
            f"UPDATE totals SET {name} = (SELECT coalesce(sum(n.{name}), 0) "  # noqa: S608
            "FROM namespace_totals AS n WHERE n.shard = totals.shard)"
        )
    op.drop_table("namespace_totals")
    if op.get_bind().dialect.name == "postgresql":
        op.drop_index("ix_entries_lookup", "entries")
    op.drop_index("ix_entries_namespace_eviction", "entries")
    op.drop_index("ix_entries_eviction", "entries")
    op.create_index("ix_entries_eviction", "entries", ["pinned", "score"])
    op.drop_column("entries", "ancestor_tokens")
