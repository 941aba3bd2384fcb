"""What is special about PostgreSQL, in one place.

* **Deadlines.** The server ends a statement after `timeout_s`, and its wait for a row after half
  of that, which is busy and tried again. One that hangs or is cut off cannot: then the connection
  gives up by itself, a little later, and all of the pool are replaced.
* **A server that only reads** (a standby) is connected to anew once a write has found that out:
  the name, or another host of the URL, may lead to the primary by now.
* **Idle connections** that the server has ended are replaced unnoticed: their socket has news when
  there should be none. Looking there is free; a ping would double a lookup's round trips.
* **Reads** are single statements, outside a transaction: one round trip instead of three. Lookups
  go straight through libpq, over a connection that is kept for them.
* **READ COMMITTED** for writes, whatever the server's default: a write first locks the row that
  decides (``FOR UPDATE``), and two that insert one key meet in its unique index.
* **A pooler** in front may give each transaction another of the server's connections, where a
  statement that was prepared under our name is somebody else's, or none. Nothing is prepared where
  the server's process is not the one that the connection was told of.
* **Migrations** hold an advisory lock from before they look until they have committed, and wait
  for it, and for their statements, as long as it takes.
"""

from __future__ import annotations

import math
import select
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, TypeVar, cast

import psycopg
from psycopg.abc import PQGen
from psycopg.rows import TupleRow
from sqlalchemy import URL, Connection, Engine, create_engine, event
from sqlalchemy.engine.interfaces import DBAPIConnection, ExceptionContext
from sqlalchemy.engine.interfaces import Dialect as DialectOfSQLAlchemy
from sqlalchemy.exc import DBAPIError, DisconnectionError
from sqlalchemy.pool import ConnectionPoolEntry, PoolProxiedConnection, QueuePool

from statestore.backends.base import NotAtHandError
from statestore.backends.sql.database import WRITES, Database, Dialect, Fault, Row
from statestore.backends.sql.wire import OverdueError, Question, Wire

T = TypeVar("T")

_KEPT_CONNECTIONS: Final = 1  # for questions; each is one more that the server has open
_IDLE_CONNECTIONS: Final = 3  # kept open between transactions, when questions have theirs
_MORE_CONNECTIONS: Final = 5  # opened when threads want them; a server has about 100 for all
_CONNECT_S: Final = 2  # the least that the driver takes; per address of the host
_KEEPALIVE_S: Final = 60  # a network that went away shows on an idle connection, too
_LOOK_S: Final = 0.1  # between two looks at the clock while an answer is awaited
_LEAST_LOOK_S: Final = 0.005
_MARGIN_S: Final = 0.5  # the server's own deadline comes first: its connection can be kept
_IDLE_IN_TRANSACTION_S: Final = 30.0  # then a client is taken for dead, and its locks are freed
_MIGRATION_LOCK: Final = int.from_bytes(b"rwkvstst", "big")  # of one database; any number

# https://www.postgresql.org/docs/current/errcodes-appendix.html
_BUSY: Final = frozenset(
    {
        "40001",  # serialization_failure
        "40P01",  # deadlock_detected
        "55P03",  # lock_not_available: the wait for a row took too long
        "23505",  # unique_violation: another one inserted the key since this transaction looked
    }
)
_FULL: Final = "53100"  # disk_full
_READS_ONLY: Final = "25006"  # read_only_sql_transaction


_hurried = threading.local()  # `now`: this thread has no time for a new connection

# Of a pool's entry: when it was opened, by the monotonic clock, and how it is asked.
_OPENED_AT: Final = "statestore_opened_at"
_WIRE: Final = "statestore_wire"


def open_database(url: URL, timeout_s: float) -> Database:
    """The database at `url`; nothing is asked of it yet.

    Args:
        url: of SQLAlchemy, with the dialect ``postgresql+psycopg``; may hold a secret.
        timeout_s: bounds a statement, and how long one is tried again while rows are locked.
    """
    limits = {
        "statement_timeout": timeout_s,
        "lock_timeout": timeout_s / 2,
        "idle_in_transaction_session_timeout": _IDLE_IN_TRANSACTION_S,
    }
    engine = _engine(url, limits, answer_s=timeout_s + _MARGIN_S, pool_timeout_s=timeout_s)
    return _database(engine, url, timeout_s)


def open_for_migration(url: URL) -> Database:
    """As `open_database`, but whoever writes is alone, and nothing is hurried."""
    engine = _engine(url, {}, answer_s=math.inf, pool_timeout_s=1.0)

    @event.listens_for(engine, "begin")
    def be_alone(connection: Connection) -> None:
        if _writes(connection):
            connection.exec_driver_sql(f"SELECT pg_advisory_xact_lock({_MIGRATION_LOCK})")

    return _database(engine, url, patience_s=60.0)


def classify(error: DBAPIError) -> Fault:
    """What an exception of the driver means."""
    code = getattr(error.orig, "sqlstate", None)
    if code in _BUSY:
        return Fault.BUSY
    return {_FULL: Fault.FULL, _READS_ONLY: Fault.READS_ONLY}.get(str(code), Fault.OTHER)


def without_secret(url: URL) -> str:
    """`url` as text, without its password."""
    bare = URL.create(url.drivername, url.username, None, url.host, url.port, url.database)
    return bare.update_query_dict(url.query).render_as_string()


class BoundedConnection(psycopg.Connection[TupleRow]):
    """A connection that closes itself when the server lets it wait longer than `answer_s`."""

    answer_s: float = math.inf

    def wait(self, gen: PQGen[T], interval: float = _LOOK_S, *args: Any, **kwargs: Any) -> T:  # noqa: ANN401 - the driver's
        """Run one exchange with the server. Raises ``OperationalError`` when it is overdue."""
        interval = min(interval, max(self.answer_s / 10, _LEAST_LOOK_S))
        try:
            return super().wait(_until(gen, self.answer_s), interval, *args, **kwargs)
        except OverdueError:
            self.close()
            raise


class PostgresShortcut:
    """Some of the engine's connections, kept for questions, and asked without what SQLAlchemy and
    the driver do around a statement.
    """

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._idle: list[_Kept] = []
        self._questions: dict[str, Question] = {}
        # when a connection was lost, or found to take no writes: the others' server is the same
        self._lost_at = 0.0
        event.listen(engine, "handle_error", self._judge)
        event.listen(engine, "connect", self._date)
        event.listen(engine, "checkout", self._look)

    def rows(
        self, text: str, parameters: Mapping[str, Any], until: float | None = None
    ) -> list[Row]:
        """The rows of one SELECT; with `until` no connection is opened or waited for."""
        question = self._questions.get(text)
        if question is None:
            question = self._questions[text] = Question.of(text)
        kept = None
        try:
            kept = self._at_hand() or self._taken(until)
            answer_s = kept.answer_s
            if until is not None:
                answer_s = min(answer_s, max(0.0, until - time.monotonic()))
            rows = kept.wire.ask(question, parameters, answer_s)
        except BaseException as error:
            if kept is not None:
                self._give_up(kept, error)
            if isinstance(error, psycopg.Error):
                raise DBAPIError(text, None, error) from error
            raise
        if len(self._idle) < _KEPT_CONNECTIONS:
            self._idle.append(kept)
        else:
            kept.connection.close()
        return rows

    def clear(self) -> None:
        """Let the engine have them, which closes them."""
        while self._idle:
            self._idle.pop().connection.close()

    def _at_hand(self) -> _Kept | None:
        """An idle one that is still good."""
        while True:
            try:
                kept = self._idle.pop()
            except IndexError:
                return None
            if kept.opened_at > self._lost_at and kept.wire.is_idle:
                return kept
            kept.connection.invalidate()

    def _taken(self, until: float | None) -> _Kept:
        """One of the pool's; with `until` an idle one that is still good, or `NotAtHandError`."""
        if until is not None and not cast("QueuePool", self._engine.pool).checkedin():
            raise NotAtHandError
        _hurried.now = until is not None
        try:
            return _Kept.of(self._engine.raw_connection())
        finally:
            _hurried.now = False

    def _give_up(self, kept: _Kept, error: BaseException) -> None:
        """An error that the server told leaves a connection as it was; any other one, of no use."""
        if isinstance(error, psycopg.Error):
            if not isinstance(error, OverdueError) and kept.wire.is_idle:
                kept.connection.close()
                return
            self._lost_at = time.monotonic()
        kept.connection.invalidate()

    def _judge(self, context: ExceptionContext) -> None:
        state = getattr(context.original_exception, "sqlstate", None)
        if context.is_disconnect or state == _READS_ONLY:
            self._lost_at = time.monotonic()

    def _date(self, _connection: object, record: ConnectionPoolEntry) -> None:
        record.info[_OPENED_AT] = time.monotonic()

    def _look(self, _connection: object, record: ConnectionPoolEntry, _proxy: object) -> None:
        if record.info[_OPENED_AT] <= self._lost_at:
            raise DisconnectionError("another connection to this server was of no use")


@dataclass(frozen=True, slots=True)
class _Kept:
    """A connection of the pool's while it is kept for questions."""

    connection: PoolProxiedConnection
    wire: Wire
    answer_s: float
    opened_at: float

    @classmethod
    def of(cls, connection: PoolProxiedConnection) -> _Kept:
        driver = cast("BoundedConnection", connection.driver_connection)
        known = connection.info
        wire = known.get(_WIRE)
        if wire is None:
            prepares = driver.prepare_threshold is not None
            wire = known[_WIRE] = Wire(driver, prepares=prepares)
        return cls(connection, wire, driver.answer_s, known[_OPENED_AT])


def _until(gen: PQGen[T], answer_s: float) -> PQGen[T]:
    """`gen`, ended when it takes longer. The driver wakes it now and then."""
    deadline = time.monotonic() + answer_s
    try:
        wanted = next(gen)
        overdue = False
        while not overdue:
            ready = yield wanted
            overdue = time.monotonic() > deadline
            if ready or not overdue:  # what has come in the meantime may be all
                wanted = gen.send(ready)
        raise OverdueError(f"no answer within {answer_s:.3g} s")
    except StopIteration as end:
        return cast("T", end.value)


def _engine(
    url: URL, limits: dict[str, float], *, answer_s: float, pool_timeout_s: float
) -> Engine:
    # No statement here gains by being compiled, and an estimate may have one compiled for 0.1 s.
    settings = "; ".join(
        [
            "SET jit = off",
            *(f"SET {name} = {round(1000 * s)}" for name, s in limits.items()),
            "SELECT pg_backend_pid()",
        ]
    )
    engine = create_engine(
        url,
        isolation_level="AUTOCOMMIT",
        pool_size=_IDLE_CONNECTIONS,
        max_overflow=_MORE_CONNECTIONS,
        pool_timeout=pool_timeout_s,
        hide_parameters=True,
        use_native_hstore=False,
        connect_args={
            "application_name": url.query.get("application_name", "statestore"),
            "connect_timeout": _CONNECT_S,
            "keepalives_idle": _KEEPALIVE_S,
        },
    )

    @event.listens_for(engine, "do_connect")
    def connect(
        _dialect: DialectOfSQLAlchemy,
        _record: ConnectionPoolEntry,
        args: list[Any],
        parameters: dict[str, Any],
    ) -> DBAPIConnection:
        if getattr(_hurried, "now", False):
            raise NotAtHandError
        connection = BoundedConnection.connect(*args, **parameters)
        connection.answer_s = answer_s
        try:
            # not among the parameters of the start: a pooler would refuse them
            connection.autocommit = True
            cursor = connection.execute(settings.encode())
            if _is_pooled(connection, cursor):
                connection.prepare_threshold = None
        except psycopg.Error:
            connection.close()
            raise
        return cast("DBAPIConnection", connection)

    @event.listens_for(engine, "checkout")
    def look(connection: BoundedConnection, _record: object, _proxy: object) -> None:
        if connection.closed or _has_news(connection.fileno()):
            raise DisconnectionError("the server ended an idle connection")

    @event.listens_for(engine, "engine_connect")
    def isolate(connection: Connection) -> None:
        if _writes(connection):
            connection.execution_options(isolation_level="READ COMMITTED")

    return engine


def _is_pooled(connection: BoundedConnection, told: psycopg.Cursor[TupleRow]) -> bool:
    """Whether another process answers than the one that the connection was opened to: a pooler
    gives a number of its own, whatever it pools by. `told` ends with the process that answers.
    """
    while told.nextset():
        pass
    row = told.fetchone()
    return row is None or row[0] != connection.pgconn.backend_pid


def _has_news(socket: int) -> bool:
    """Whether something waits to be read, an end of the connection included."""
    poll = select.poll()
    poll.register(socket, select.POLLIN)
    return bool(poll.poll(0))


def _writes(connection: Connection) -> bool:
    return bool(connection.get_execution_options().get(WRITES, False))


def _database(engine: Engine, url: URL, patience_s: float) -> Database:
    remedy = "look at the server, and at what this user may do there"
    place = f"catalog {without_secret(url.set(query={}))}"
    primary = "is it a standby? name the primary: host=a,b&target_session_attrs=read-write finds it"
    dialect = Dialect(classify, remedy, remedies={Fault.READS_ONLY: primary})
    return Database(engine, place, dialect, patience_s, PostgresShortcut(engine))
