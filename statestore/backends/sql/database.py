"""Transactions on one database: retried while it is busy, with the storage layer's errors.

`Database.read`, `Database.write` and `Database.apply` run a function inside a transaction. The
function may run again when the database was busy, so it must touch nothing but its connection.
`Database.rows` gives the rows of one SELECT with as little as possible around it. What is special
about one database product is a `Dialect`; ``sqlite`` has one. Knows nothing of states or tables.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from functools import partial
from typing import Any, Final, Protocol, TypeAlias, TypeVar

from sqlalchemy import Connection, Engine, Select, TextClause
from sqlalchemy.engine.interfaces import Dialect as DialectOfSQLAlchemy
from sqlalchemy.exc import DBAPIError, SQLAlchemyError

from statestore.backends.base import NotAtHandError
from statestore.backends.sql.forks import Turnstile
from statestore.errors import BackendError, BusyError, ClosedError, FullError, UnavailableError

T = TypeVar("T")

#: A row as the driver gives it, in the order of the statement's columns.
Row: TypeAlias = Sequence[Any]

#: A question in SQLAlchemy's words, or in text.
Statement: TypeAlias = Select[Any] | TextClause

#: Execution option of a transaction that is going to write.
WRITES: Final = "statestore_writes"

#: Execution option: seconds that one wait for a lock may take, where the database waits itself.
PATIENCE: Final = "statestore_patience_s"

_PAUSE_S: Final = 0.01  # mean wait between two tries


class Fault(Enum):
    """What a driver's exception means for the caller."""

    BUSY = "busy"  # another transaction was in the way: try again
    FULL = "full"
    READS_ONLY = "reads only"
    DAMAGED = "damaged"
    OTHER = "other"


@dataclass(frozen=True, slots=True)
class Dialect:
    """What differs between database products."""

    classify: Callable[[DBAPIError], Fault]
    remedy: str  # ends the message of an unexpected failure
    #: How statements are spelt that go past SQLAlchemy; ``None``: as the engine's.
    spelling: DialectOfSQLAlchemy | None = None
    #: The remedies of faults that have one of their own.
    remedies: Mapping[Fault, str] = field(default_factory=dict)


class Shortcut(Protocol):
    """A way to a database past SQLAlchemy, for reading."""

    def rows(
        self, text: str, parameters: Mapping[str, Any], until: float | None = None
    ) -> list[Row]:
        """The rows of one SELECT, whose parameters are named. Raises ``DBAPIError``.

        `until`, a moment by `time.monotonic`, is kept: over a connection that is open already.
        `NotAtHandError` where there is none, or the database cannot be left in time.
        """

    def clear(self) -> None:
        """Close every connection; nobody is in `rows`."""


class Database:
    """An engine and how to use it. Safe to use from several threads, and across a fork.

    Args:
        engine: closed by `close`.
        place: names the database in messages, without secrets.
        dialect: how its exceptions are read.
        patience_s: how long a transaction is tried again while the database is busy.
        shortcut: what `rows` goes by; closed by `close`.
    """

    def __init__(
        self,
        engine: Engine,
        place: str,
        dialect: Dialect,
        patience_s: float,
        shortcut: Shortcut | None = None,
    ) -> None:
        self.place = place
        self._reader = engine
        self._dialect = dialect
        self._patience_s = patience_s
        self._shortcut = shortcut
        self._engines: dict[tuple[bool, float], Engine] = {(False, patience_s): engine}
        self._texts: dict[Statement, tuple[str, Mapping[str, Any]]] = {}
        self._closed = False
        self._condition: Callable[[Connection], None] | None = None
        self._turnstile = Turnstile(self._disconnect)

    @property
    def product(self) -> str:
        """``"sqlite"`` or ``"postgresql"``."""
        return self._reader.dialect.name

    def require(self, condition: Callable[[Connection], None]) -> None:
        """From now on each transaction begins with `condition`, until one has not raised."""
        self._condition = condition

    def rows(
        self, statement: Statement, parameters: Mapping[str, Any], until: float | None = None
    ) -> list[Row]:
        """The rows of `statement` as the driver gives them: SQLite's truth is 0 or 1.

        Raises as `read`; with `until`, a moment by `time.monotonic`, it is kept, and
        `NotAtHandError` says that this goes only without.
        """
        text, constants = self._texts.get(statement) or self._compiled(statement)
        given = {**constants, **parameters}
        if self._shortcut is not None and self._condition is None:
            left_s = self._patience_s if until is None else until - time.monotonic()
            return self._persist(partial(self._shortcut.rows, text, given, until), left_s)
        if until is not None:
            raise NotAtHandError
        return self.read(lambda tx: list(tx.exec_driver_sql(text, given)))

    def read(self, work: Callable[[Connection], T]) -> T:
        """The result of `work`, which only reads, in a transaction of its own.

        Raises:
            UnavailableError: the database stayed busy, or failed.
            FullError: it has no space left.
            ClosedError: `close` was called.
        """
        return self._run(work, writes=False, patience_s=self._patience_s)

    def write(self, work: Callable[[Connection], T], *, patience_s: float | None = None) -> T:
        """As `read`, and commits. The write lock is taken before `work` reads.

        With `patience_s`, the database is tried no longer than that; then it is a `BusyError`.
        """
        return self._run(work, writes=True, patience_s=self._at_most(patience_s))

    def apply(self, work: Callable[[Connection], T], *, patience_s: float | None = None) -> T:
        """As `write`, for work that is a single statement: it needs no round trip but its own."""
        return self._run(work, writes=False, patience_s=self._at_most(patience_s))

    def close(self) -> None:
        """Wait for running transactions and release every connection."""
        with self._turnstile.alone():
            self._closed = True

    def _at_most(self, patience_s: float | None) -> float:
        return self._patience_s if patience_s is None else min(patience_s, self._patience_s)

    def _engine(self, *, writes: bool, patience_s: float) -> Engine:
        """The engine with these options; all share one pool."""
        known = self._engines.get((writes, patience_s))
        if known is None:
            options = {WRITES: writes, PATIENCE: patience_s}
            known = self._engines[writes, patience_s] = self._reader.execution_options(**options)
        return known

    def _run(self, work: Callable[[Connection], T], *, writes: bool, patience_s: float) -> T:
        engine = self._engine(writes=writes, patience_s=patience_s)

        def transaction() -> T:
            with engine.begin() as connection:
                if self._condition is not None:
                    self._condition(connection)
                    self._condition = None
                return work(connection)

        return self._persist(transaction, patience_s)

    def _persist(self, attempt: Callable[[], T], patience_s: float) -> T:
        """The result of `attempt`, which is made again while the database is busy."""
        deadline = time.monotonic() + patience_s
        while True:
            try:
                return self._once(attempt)
            except DBAPIError as error:
                fault = self._dialect.classify(error)
                if fault is not Fault.BUSY or time.monotonic() > deadline:
                    raise self._translated(error, fault, patience_s) from error
            except (SQLAlchemyError, UnicodeDecodeError) as error:
                # a driver fails to decode its own message where a damaged table's name is in it
                raise UnavailableError(f"{self.place}: {error}; {self._dialect.remedy}") from error
            time.sleep(random.uniform(0, 2 * _PAUSE_S))  # noqa: S311 - not a secret

    def _once(self, attempt: Callable[[], T]) -> T:
        visit, turnstile = object(), self._turnstile
        try:
            turnstile.enter(visit)
            if self._closed:
                raise ClosedError(f"{self.place} was closed")
            return attempt()
        finally:
            turnstile.inside.discard(visit)  # here, in one step: a Ctrl-C comes behind it at most
            turnstile.left()

    def _compiled(self, statement: Statement) -> tuple[str, Mapping[str, Any]]:
        """The text of `statement`, and those of its parameters that have a value already."""
        compiled = statement.compile(dialect=self._dialect.spelling or self._reader.dialect)
        constants = {name: value for name, value in compiled.params.items() if value is not None}
        self._texts[statement] = known = str(compiled), constants
        return known

    def _disconnect(self) -> None:
        if self._shortcut is not None:
            self._shortcut.clear()
        self._reader.dispose()

    def _translated(self, error: DBAPIError, fault: Fault, patience_s: float) -> BackendError:
        if fault is Fault.FULL:
            return FullError(f"{self.place}: no space left: free some, or lower the budget")
        if fault is Fault.BUSY:
            kind = BusyError if patience_s < self._patience_s else UnavailableError
            return kind(f"{self.place} was busy for {patience_s:g} s: another process holds it")
        what = " ".join(str(error.orig).split())  # one line, whatever the driver
        return UnavailableError(f"{self.place}: {what}; {self._remedy(fault)}")

    def _remedy(self, fault: Fault) -> str:
        return self._dialect.remedies.get(fault, self._dialect.remedy)
