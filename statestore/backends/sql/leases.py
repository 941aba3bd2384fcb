"""Leases in the catalog's database: a row of ``leases`` for each key.

Every moment is by the database's clock: on a server one clock for all hosts, in a SQLite file that
of the host it lies on. A lease that would last longer than any is given for is of a clock that was
set back since, and stands in nobody's way. Each call is one statement or two, and whoever finds a
lease held has only read. A row stays until it is taken again, or some time after it lapsed: a
release removes old ones.

A server tells those who wait of a release (`line`). What no message tells, that the owner
died or the message was lost, they see when the lease should have lapsed, and every few seconds. In
a SQLite file, and where there is no connection to listen on, they look at jittered, growing
intervals.

Callers stand between a question and its answer, so a catalog that is busy is waited for `_BUSY_S`
at most.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any, Final, TypeVar

from sqlalchemy import Connection, Double, bindparam, delete, func, not_, or_, select, update
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql.compiler import SQLCompiler
from sqlalchemy.sql.expression import ColumnElement

from statestore.backends.bell import Bell, Ear, Line
from statestore.backends.leases import OUTCOME_S, Lease, Outcome
from statestore.backends.sql.database import Database
from statestore.backends.sql.unsynced import UNSYNCED, unsynced
from statestore.keys import StateKey
from statestore.tables import leases

T = TypeVar("T")

#: Seconds for which a lease is given at most; it is renewed long before.
LONGEST_S: Final = 900.0

_BUSY_S: Final = 1.0
_FIRST_PAUSE_S: Final = 0.005  # mean wait before a second look; it doubles
_LAST_PAUSE_S: Final = 0.1
_LEAST_PAUSE_S: Final = 0.001
_LISTENING_S: Final = (1.0, 3.0)  # between two looks although one listens
_OLD_ROWS: Final = 100  # that one release removes
_HELD: Final = ""  # the outcome of a lease that has none

#: Where PostgreSQL tells of releases; a channel belongs to a database, as the catalog does.
CHANNEL: Final = "statestore_released"


class _Now(ColumnElement[float]):
    """Seconds since the epoch by the database's clock, as it goes on inside a transaction."""

    inherit_cache = True
    type = Double()


@compiles(_Now, "sqlite")
def _now_of_the_host(_now: _Now, _compiler: SQLCompiler, **_options: object) -> str:
    return "((julianday('now') - 2440587.5) * 86400.0)"


@compiles(_Now, "postgresql")
def _now_of_the_server(_now: _Now, _compiler: SQLCompiler, **_options: object) -> str:
    return "extract(epoch from clock_timestamp())::float8"


_NOW: Final = _Now()
_THIS: Final = leases.c.digest == bindparam("of")
_OWN: Final = (leases.c.owner == bindparam("by")) & (leases.c.outcome == _HELD)
_STANDING: Final = (leases.c.owner, leases.c.outcome, (leases.c.expires_at - _NOW).label("left"))

_OVER: Final = or_(leases.c.expires_at <= _NOW, leases.c.expires_at > _NOW + LONGEST_S)
_LOOK: Final = select(*_STANDING).where(_THIS, not_(_OVER))
_RENEW: Final = (
    update(leases)
    .where(_THIS, _OWN, leases.c.expires_at > _NOW)
    .values(expires_at=_NOW + bindparam("term_s", type_=Double))
)
_RELEASE: Final = (
    update(leases)
    .where(_THIS, _OWN)
    .values(expires_at=_NOW + OUTCOME_S, outcome=bindparam("result"))
)
# what another transaction holds is left to it: nobody waits
_old: Final = (
    select(leases.c.digest)
    .where(leases.c.expires_at <= _NOW)
    .order_by(leases.c.expires_at)
    .limit(_OLD_ROWS)
    .with_for_update(skip_locked=True)
)
_FORGET: Final = delete(leases).where(leases.c.digest.in_(_old))
_TELL: Final = select(func.pg_notify(CHANNEL, bindparam("told")))


def _take(kind: Any) -> Any:  # noqa: ANN401 - two dialects' own INSERTs, alike and unrelated
    """Insert the lease, or take it over where nobody else holds it."""
    until = _NOW + bindparam("term_s", type_=Double)
    row = {"owner": bindparam("by"), "outcome": _HELD, "expires_at": until}
    free = or_(_OVER, leases.c.outcome == Outcome.PUBLISHED.value, _OWN)
    statement = kind.insert(leases).values(digest=bindparam("of"), **row)
    return statement.on_conflict_do_update(
        index_elements=[leases.c.digest], set_=row, where=free
    ).returning(*_STANDING)


_TAKE: Final = {
    "sqlite": _take(sqlite),
    "postgresql": _take(postgresql).returning(UNSYNCED),
}


class SqlLeases:
    """`Leases` in a catalog, which whoever made this closes.

    Args:
        database: the catalog.
        listen: opens a line on which the server tells of releases; ``None``: it tells nobody.
    """

    def __init__(self, database: Database, listen: Callable[[], Line] | None = None) -> None:
        self._database = database
        self._bell = None if listen is None else Bell(listen)

    def acquire(self, key: StateKey, owner: str, ttl_s: float) -> Lease:
        """Take the lease on `key` if nobody holds it; how it stands after that."""
        given = {"of": key.digest, "by": owner, "term_s": min(ttl_s, LONGEST_S)}
        while True:
            seen = self._look(key)
            if seen is not None and not _open_to(owner, seen):
                return seen
            taken = self._apply(lambda tx: _one(tx, _TAKE[tx.dialect.name], given))
            if taken is not None:
                return taken

    def renew(self, key: StateKey, owner: str, ttl_s: float) -> bool:
        """Hold on to it for `ttl_s` from now; ``False``: it lapsed, or another has it."""
        given = {"of": key.digest, "by": owner, "term_s": min(ttl_s, LONGEST_S)}
        return self._apply(lambda tx: tx.execute(unsynced(tx, _RENEW), given).rowcount) == 1

    def release(self, key: StateKey, owner: str, outcome: Outcome) -> None:
        """Let go, leaving the outcome for `OUTCOME_S`; nothing happens where another holds it."""
        given = {"of": key.digest, "by": owner, "result": outcome.value}
        released = self._apply(lambda tx: tx.execute(unsynced(tx, _RELEASE), given).rowcount)
        if released and self._bell is not None:
            self._apply(lambda tx: tx.execute(_TELL, {"told": key.hex}).rowcount)
        self._apply(lambda tx: tx.execute(unsynced(tx, _FORGET)).rowcount)

    def wait(self, key: StateKey, timeout_s: float) -> Lease | None:
        """How the lease stands once it was released, lapsed or `timeout_s` passed; ``None``: free.

        A look is one row's read.
        """
        deadline = time.monotonic() + timeout_s
        seen = self._look(key)
        if _is_over(seen, deadline):
            return seen
        with nullcontext() if self._bell is None else self._bell.ear(key.hex) as ear:
            pause_s = _FIRST_PAUSE_S
            while True:
                hears = self._bell is not None and self._bell.hears()
                seen = self._look(key)  # behind the line's opening: no release comes in between
                if seen is None or _is_over(seen, deadline):
                    return seen
                spread = _LISTENING_S if hears else (0.5 * pause_s, 1.5 * pause_s)
                chosen_s = random.uniform(*spread)  # noqa: S311 - not a secret
                left_s = deadline - time.monotonic()
                self._pause(ear, max(_LEAST_PAUSE_S, min(left_s, seen.remaining_s, chosen_s)))
                pause_s = min(2 * pause_s, _LAST_PAUSE_S)

    def _pause(self, ear: Ear | None, seconds: float) -> None:
        if self._bell is None or ear is None:
            time.sleep(seconds)
        else:
            self._bell.wait(ear, seconds)

    def _look(self, key: StateKey) -> Lease | None:
        return self._database.read(lambda tx: _one(tx, _LOOK, {"of": key.digest}))

    def _apply(self, work: Callable[[Connection], T]) -> T:
        return self._database.apply(work, patience_s=_BUSY_S)


def _one(connection: Connection, statement: Any, given: dict[str, Any]) -> Lease | None:  # noqa: ANN401
    row = connection.execute(statement, given).one_or_none()
    if row is None:
        return None
    return Lease(row.owner, float(row.left), _outcome(row.outcome) if row.outcome else None)


def _outcome(stored: str) -> Outcome:
    """What this release does not know is no reason to wait."""
    return Outcome(stored) if stored in list(Outcome) else Outcome.NOT_STORED


def _is_over(seen: Lease | None, deadline: float) -> bool:
    return seen is None or seen.outcome is not None or time.monotonic() >= deadline


def _open_to(owner: str, seen: Lease) -> bool:
    """Whether `owner` may take the lease that stands like this."""
    if seen.outcome is not None:
        return seen.outcome is Outcome.PUBLISHED
    return seen.owner == owner
