"""Recorded requests: what was asked when, as the keys of every prefix that could be stored.

Two formats, one JSON object a line, told apart by their fields:

    {"timestamp": ms, "input_length": tokens, "output_length": tokens, "hash_ids": [int, ...]}
        Mooncake's: one id for each block, which stands for the whole prefix up to the block's end.
        The last block may be a part; only full ones can be found again.
    {"time": s, "tokens": tokens, "positions": [tokens, ...], "keys": [hex, ...], ...}
        an access log, see `statestore.accesslog`: a key for each of a prompt's chunk ends.

A trace comes from elsewhere: what is no request is refused, with its line.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from statestore.errors import InputError
from statestore.keys import StateKey

#: Longest line; a prompt of a hundred million tokens fits.
LINE_LIMIT: Final = 1 << 24  # 16 MiB
#: Tokens of the longest prompt, seconds of the longest trace (about 30 years), the largest time.
TOKENS_LIMIT: Final = 1 << 40
SPAN_LIMIT_S: Final = 1e9
TIME_LIMIT: Final = 1e15

_KEY_BYTES: Final = 16  # of an access log


@dataclass(frozen=True, slots=True)
class Request:
    """One prompt."""

    time_s: float
    n_tokens: int
    keys: tuple[StateKey, ...]  # of its prefixes, shallow first
    segments: frozenset[int] = frozenset()  # places in `keys` where a declared segment ends


def read_trace(path: Path, block_size: int = 512) -> list[Request]:
    """The requests in a file, ordered by time; `block_size` in tokens, of Mooncake's format.

    Raises `InputError`, which names the line, for what is no request.
    """
    try:
        with path.open("rb") as file:
            lines = iter(lambda: file.readline(LINE_LIMIT + 1), b"")
            requests = list(_requests(lines, str(path), block_size))
    except OSError as error:
        raise InputError(f"trace {path}: {error}") from error
    if not requests:
        raise InputError(f"trace {path}: it holds no request")
    requests.sort(key=lambda request: request.time_s)
    span_s = requests[-1].time_s - requests[0].time_s
    if span_s > SPAN_LIMIT_S:
        raise InputError(f"trace {path}: {span_s:g} s lie between its first and its last request")
    return requests


def _requests(lines: Iterable[bytes], where: str, block_size: int) -> Iterator[Request]:
    keys: dict[tuple[int, int], StateKey] = {}
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            yield _request(line, block_size, keys)
        except (ValueError, KeyError, TypeError, ArithmeticError, RecursionError) as error:
            says = f"no {error}" if type(error) is KeyError else str(error)
            raise InputError(f"trace {where}, line {number}: no request: {says}") from error


def _request(line: bytes, block_size: int, keys: dict[tuple[int, int], StateKey]) -> Request:
    if len(line) > LINE_LIMIT:
        raise ValueError(f"longer than {LINE_LIMIT} bytes")
    fields = json.loads(line)
    if type(fields) is not dict:
        raise TypeError(f"a JSON object is wanted, not {type(fields).__name__}")
    return _mooncake(fields, block_size, keys) if "hash_ids" in fields else _logged(fields)


def _mooncake(
    fields: dict[str, Any], block_size: int, keys: dict[tuple[int, int], StateKey]
) -> Request:
    tokens = _count(fields, "input_length")
    blocks = _list(fields, "hash_ids", int)
    prefixes = tuple(
        _once(keys, block, place * block_size)
        for place, block in enumerate(blocks[: tokens // block_size], 1)
    )
    return Request(_time(fields, "timestamp") / 1000.0, tokens, prefixes)


def _once(keys: dict[tuple[int, int], StateKey], block: int, position: int) -> StateKey:
    """The key of a block, the same object for each request that has it."""
    key = keys.get((block, position))
    if key is None:
        digest = hashlib.sha256(b"%d %d" % (block, position)).digest()
        key = keys[block, position] = StateKey(digest, position)
    return key


def _logged(fields: dict[str, Any]) -> Request:
    tokens = _count(fields, "tokens")
    positions, names = _list(fields, "positions", int), _list(fields, "keys", str)
    if len(positions) != len(names):
        raise ValueError(f"{len(positions)} positions and {len(names)} keys")
    if any(
        low >= high for low, high in zip([0, *positions], [*positions, tokens + 1], strict=True)
    ):
        raise ValueError("positions are not ascending from 1 to the prompt's tokens")
    segments = set(_list(fields, "segments", int)) if "segments" in fields else set()
    return Request(
        _time(fields, "time"),
        tokens,
        tuple(map(_named, names, positions)),
        frozenset(place for place, position in enumerate(positions) if position in segments),
    )


def _named(name: str, position: int) -> StateKey:
    digest = bytes.fromhex(name)
    if len(digest) != _KEY_BYTES:
        raise ValueError(f"a key is {2 * _KEY_BYTES} hex digits, not {name[:80]!r}")
    return StateKey(digest + digest, position)


def _count(fields: dict[str, Any], name: str) -> int:
    value = fields[name]
    if type(value) is not int or not 0 <= value <= TOKENS_LIMIT:
        raise ValueError(f"{name} is a count of tokens up to 2**40, not {str(value)[:80]}")
    return value


def _time(fields: dict[str, Any], name: str) -> float:
    value = fields[name]
    if type(value) not in (int, float) or not math.isfinite(value) or abs(value) > TIME_LIMIT:
        raise ValueError(f"{name} is no time: {str(value)[:80]}")
    return float(value)


def _list(fields: dict[str, Any], name: str, kind: type) -> list[Any]:
    value = fields[name]
    if type(value) is not list or any(type(item) is not kind for item in value):
        raise ValueError(f"{name} is a list of {kind.__name__}")
    return value
