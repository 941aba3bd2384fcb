"""The catalog's tables, as SQLAlchemy metadata and nothing else.

``entries`` holds one row per state, ``departed`` what is remembered of the newest removed ones,
``leases`` who computes which key, ``ageing`` one row with the highest score evicted, which is also
what evictors lock, ``sightings`` the prefixes that were seen lately, ``lookups`` what was looked
for and found.

``namespace_totals`` has the sums that `usage` reports: up to `SHARDS` rows per namespace, each for
the digests whose first byte falls on it, changed in the transaction that changes an entry. So a
total costs a few rows however many states there are (a sum over a million rows would cost tens of
milliseconds before every eviction), and writers on a server seldom wait for the same row.

`REVISIONS` names the revisions of ``migrations/`` from oldest to newest, so that a process can
tell "at head", "older" and "newer" without loading Alembic.
"""

from __future__ import annotations

from typing import Final

from sqlalchemy import (
    BigInteger,
    Boolean,
    Column,
    Double,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    SmallInteger,
    String,
    Table,
    Text,
    text,
)

REVISIONS: Final = ("0001", "0002", "0003", "0004", "0005", "0006", "0007", "0008", "0009")
HEAD: Final = REVISIONS[-1]

SHARDS: Final = 16  # rows of a namespace in `totals`
DEPARTED_ROWS: Final = 10_000  # removals remembered
MARK_BYTES: Final = 12  # of a prefix, in `sightings`

#: In an index's ``info``: the one dialect that has it.
ONLY_ON: Final = "only_on"

# SQLite numbers rows by itself in a column of exactly this type; elsewhere it would end at 2**31.
_COUNTER: Final = BigInteger().with_variant(Integer, "sqlite")

metadata = MetaData()

entries = Table(
    "entries",
    metadata,
    Column("digest", LargeBinary(32), primary_key=True),
    Column("n_tokens", BigInteger, nullable=False),
    Column("namespace", Text, nullable=False),
    Column("fingerprint", LargeBinary(32), nullable=False),
    Column("token_digest", LargeBinary(32), nullable=False),
    Column("schema_id", Text, nullable=False),
    Column("role", String(16), nullable=False),
    Column("blob", String(128), nullable=False),
    Column("blob_bytes", BigInteger, nullable=False),
    Column("state_bytes", BigInteger, nullable=False),
    Column("has_output", Boolean, nullable=False),
    Column("cost_s", Double, nullable=False),
    Column("created_at", Double, nullable=False),
    Column("used_at", Double, nullable=False),
    Column("hits", BigInteger, nullable=False),
    Column("score", Double, nullable=False),
    Column("pinned", Boolean, nullable=False),
    Column("expires_at", Double),
    Column("status", String(16), nullable=False),
    Column("reason", Text, nullable=False),
    Column("model", Text, nullable=False),
    Column("labels", Text, nullable=False),  # a JSON object of strings
    Column("ancestor_tokens", BigInteger, nullable=False, server_default=text("0")),
    Column("memo", Text, nullable=False, server_default=text("''")),
    Column("anchor", BigInteger),  # of the key, where whoever put it knew it
    # takes half the time of the primary key's B-tree for the thousands of keys of a long prompt
    Index("ix_entries_lookup", "digest", postgresql_using="hash", info={ONLY_ON: "postgresql"}),
    # tells of a stretch of a long prompt's keys at once that there are none
    Index("ix_entries_anchor", "anchor", info={ONLY_ON: "postgresql"}),
    Index("ix_entries_eviction", "pinned", "status", "score"),
    Index("ix_entries_namespace_eviction", "namespace", "pinned", "status", "score"),
    Index("ix_entries_used_at", "used_at", "digest"),
    Index("ix_entries_token_digest", "token_digest", "namespace"),
    # of a namespace's, as many from any place on as a sample wants: digests are as good as dice
    Index("ix_entries_namespace_digest", "namespace", "digest"),
    Index("ix_entries_model", "namespace", "fingerprint"),
    Index("ix_entries_expires_at", "expires_at"),
    Index(
        "ix_entries_namespace_expires_at",
        "namespace",
        "expires_at",
        sqlite_where=text("expires_at IS NOT NULL"),
        postgresql_where=text("expires_at IS NOT NULL"),
    ),
)

departed = Table(
    "departed",
    metadata,
    Column("id", _COUNTER, primary_key=True),  # grows with every removal
    Column("digest", LargeBinary(32), nullable=False),
    Column("n_tokens", BigInteger, nullable=False),
    Column("reason", Text, nullable=False),
    Column("departed_at", Double, nullable=False),
    Index("ix_departed_digest", "digest", unique=True),
)

totals = Table(
    "namespace_totals",
    metadata,
    Column("namespace", Text, primary_key=True),
    Column("shard", SmallInteger, primary_key=True, autoincrement=False),
    Column("entries", BigInteger, nullable=False),
    Column("blob_bytes", BigInteger, nullable=False),
    Column("state_bytes", BigInteger, nullable=False),
    Column("quarantined", BigInteger, nullable=False),
    Column("pinned", BigInteger, nullable=False),
    Column("pinned_bytes", BigInteger, nullable=False, server_default=text("0")),
)

ageing = Table(
    "ageing",
    metadata,
    Column("id", SmallInteger, primary_key=True, autoincrement=False),
    Column("age", Double, nullable=False),
)

leases = Table(
    "leases",
    metadata,
    Column("digest", LargeBinary(32), primary_key=True),
    Column("owner", Text, nullable=False),
    Column("outcome", String(16), nullable=False),  # empty while it is held
    Column(
        "expires_at", Double, nullable=False
    ),  # seconds since the epoch, by the database's clock
    Index("ix_leases_expires_at", "expires_at"),
)

lookups = Table(
    "lookups",
    metadata,
    Column("tier", String(64), primary_key=True),
    Column("namespace", Text, primary_key=True),
    Column("fingerprint", LargeBinary(32), primary_key=True),
    Column("lookups", BigInteger, nullable=False),
    Column("found", BigInteger, nullable=False),
    Column("tokens_asked", BigInteger, nullable=False),
    Column("tokens_found", BigInteger, nullable=False),
    Column("seconds_found", Double, nullable=False),
    Column("since", Double, nullable=False),  # seconds since the epoch
)

sightings = Table(
    "sightings",
    metadata,
    Column("id", _COUNTER, primary_key=True),  # grows with every sighting
    Column("prefix", LargeBinary(MARK_BYTES), nullable=False),
    Index("ix_sightings_prefix", "prefix", unique=True),
)
