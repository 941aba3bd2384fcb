"""Questions to PostgreSQL straight through libpq: one exchange, in time, and its rows.

The driver's cursors take twenty steps of the interpreter for one of these, and between requests
each meets cold caches. What `psycopg` knows of values is used, and of errors; its connection is
asked for nothing else meanwhile.
"""

from __future__ import annotations

import re
import select
import struct
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from itertools import count
from typing import Any, Final, TypeAlias

import psycopg
from psycopg import errors
from psycopg.adapt import Transformer
from psycopg.pq import ConnStatus, ExecStatus
from psycopg.pq.abc import PGresult

from statestore.backends.sql.database import Row

#: A value as it is sent: number of its type (0: what the statement makes of it), format, bytes.
Sent: TypeAlias = tuple[int, int, bytes]

_NAMED: Final = re.compile(r"%\((\w+)\)s")
_BYTEA, _INT4, _FLOAT8 = 17, 23, 701  # pg_type.oid
_TEXT, _BINARY = 0, 1  # formats
#: How long a plan is kept at least, and else as long as the connection had been open before. It is
#: made for the table as it was, and by itself the server looks again after a minute or so: of a
#: catalog that was small it went through all that had come since.
PLAN_S: Final = 10.0

_LONGEST_S: Final = 3600.0  # of one wait; then the clock is looked at
_FAILED: Final = frozenset({ExecStatus.FATAL_ERROR, ExecStatus.BAD_RESPONSE})
# The server has no such plan: after a rollback the driver has it forget all of the connection's,
# ours too. Or the table was altered since.
_NO_PLAN: Final = (errors.InvalidSqlStatementName, errors.FeatureNotSupported)


class OverdueError(psycopg.OperationalError):
    """The server let the connection wait too long."""


@dataclass(frozen=True, slots=True)
class Question:
    """A statement, its parameters numbered: in `names` as they are numbered."""

    text: bytes
    names: tuple[str, ...]

    @classmethod
    def of(cls, text: str) -> Question:
        """That of `text`, whose parameters are spelt ``%(name)s``."""
        names = tuple(dict.fromkeys(_NAMED.findall(text)))
        numbered = _NAMED.sub(lambda found: f"${names.index(found[1]) + 1}", text)
        return cls(numbered.replace("%%", "%").encode(), names)


class Wire:
    """An open connection, for one question at a time.

    Args:
        connection: nobody else's meanwhile.
        prepares: whether the server keeps a statement under the name it is given.
    """

    def __init__(self, connection: psycopg.Connection[Any], *, prepares: bool) -> None:
        self._libpq = connection.pgconn
        self._values = Transformer(connection)
        self._prepared: dict[Question, tuple[bytes, float]] | None = {} if prepares else None
        self._names = count()
        self._began = time.monotonic()
        self._readable, self._usable = select.poll(), select.poll()
        self._readable.register(connection.fileno(), select.POLLIN)
        self._usable.register(connection.fileno(), select.POLLIN | select.POLLOUT)

    @property
    def is_idle(self) -> bool:
        """Whether it is open, and nothing waits to be read, its end included."""
        return self._libpq.status == ConnStatus.OK and not self._readable.poll(0)

    def ask(self, question: Question, parameters: Mapping[str, Any], answer_s: float) -> list[Row]:
        """The rows of the answer, which is awaited for `answer_s`.

        After `OverdueError`, or anything that is no error of the driver's, the connection is of
        no use to anybody.
        """
        until = time.monotonic() + answer_s
        sent = [_sent(parameters[name]) for name in question.names]
        if self._prepared is None:
            types, values, formats = _columns(sent)
            self._libpq.send_query_params(question.text, values, types, formats, _BINARY)
            answer = self._answer(until, answer_s)
        else:
            answer = self._planned(question, sent, until, answer_s)
        self._values.set_pgresult(answer)
        return self._values.load_rows(0, answer.ntuples, tuple)

    def _planned(
        self, question: Question, sent: list[Sent], until: float, answer_s: float
    ) -> PGresult:
        """The answer by a plan: the one that is kept, while it is young, or a new one."""
        assert self._prepared is not None
        _, values, formats = _columns(sent)
        name, good_until = self._prepared.get(question) or (b"", 0.0)
        if name and time.monotonic() <= good_until:
            with suppress(*_NO_PLAN):
                self._libpq.send_query_prepared(name, values, formats, _BINARY)
                return self._answer(until, answer_s)
        self._forget(question, until, answer_s)
        name = self._prepare(question, sent, until, answer_s)
        self._libpq.send_query_prepared(name, values, formats, _BINARY)
        return self._answer(until, answer_s)

    def _prepare(
        self, question: Question, sent: list[Sent], until: float, answer_s: float
    ) -> bytes:
        assert self._prepared is not None
        name = b"statestore_%d" % next(self._names)
        self._libpq.send_prepare(name, question.text, [kind for kind, _, _ in sent])
        self._answer(until, answer_s)
        now = time.monotonic()
        self._prepared[question] = name, now + max(PLAN_S, now - self._began)
        return name

    def _forget(self, question: Question, until: float, answer_s: float) -> None:
        assert self._prepared is not None
        name, _ = self._prepared.pop(question, (b"", 0.0))
        if name:
            with suppress(*_NO_PLAN):
                self._libpq.send_query(b"DEALLOCATE " + name)
                self._answer(until, answer_s)

    def _answer(self, until: float, answer_s: float) -> PGresult:
        """What the server says to what was sent, all of it. Raises what it complains of."""
        libpq = self._libpq
        while libpq.flush():
            self._wait(self._usable, until, answer_s)
        answer: PGresult | None = None
        while True:
            while libpq.is_busy():
                self._wait(self._readable, until, answer_s)
            if (next_one := libpq.get_result()) is None:
                break
            answer = next_one
        assert answer is not None
        if answer.status in _FAILED:
            raise errors.error_from_result(answer)
        return answer

    def _wait(self, socket: select.poll, until: float, answer_s: float) -> None:
        """Take in what comes next. What has come by the end of the time may be all."""
        left_s = min(until - time.monotonic(), _LONGEST_S)
        if not socket.poll(max(0.0, 1000 * left_s)) and left_s <= 0:
            raise OverdueError(f"no answer within {answer_s:.3g} s")
        self._libpq.consume_input()
        if left_s <= 0 and self._libpq.is_busy():
            raise OverdueError(f"no answer within {answer_s:.3g} s")


def _columns(sent: list[Sent]) -> tuple[list[int], list[bytes], list[int]]:
    """Types, values and formats."""
    return (
        [kind for kind, _, _ in sent],
        [value for _, _, value in sent],
        [how for _, how, _ in sent],
    )


def _sent(value: object) -> Sent:
    """A value as libpq takes it. What it stands for a statement says where it must: by a cast."""
    if isinstance(value, bytes):
        return _BYTEA, _BINARY, value
    if isinstance(value, float):
        return _FLOAT8, _BINARY, struct.pack("!d", value)
    if isinstance(value, int):
        return _INT4, _BINARY, struct.pack("!i", value)
    if isinstance(value, list):
        return 0, _TEXT, f"{{{','.join(map(str, value))}}}".encode()
    return 0, _TEXT, str(value).encode()
