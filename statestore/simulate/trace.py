"""Recorded requests: what was asked when, as the keys of every prefix that could be stored.

Two formats, one JSON object a line, told apart by their fields:

    {"timestamp": ms, "input_length": tokens, "output_length": tokens, "hash_ids": [int, ...]}
        Mooncake's: one id for each block, which stands for the whole prefix up to the block's end.
        The last block may be a part; only full ones can be found again.
    {"time": s, "tokens": tokens, "positions": [tokens, ...], "keys": [hex, ...], ...}
        an access log, see `statestore.accesslog`: a key for each of a prompt's chunk ends.

A trace comes from elsewhere: what is no request is refused, with its line. A million requests take
some hundred megabytes.
"""

from __future__ import annotations

import hashlib
import json
from array import array
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from statestore.accesslog import KEY_BYTES
from statestore.errors import InputError
from statestore.keys import StateKey
from statestore.simulate.prefixes import KEPT_BYTES, Prefixes
from statestore.simulate.source import LINE_LIMIT, lines_of

#: Tokens of the longest prompt, seconds of the longest trace (about 30 years), the largest time.
TOKENS_LIMIT: Final = 1 << 40
SPAN_LIMIT_S: Final = 1e9
TIME_LIMIT: Final = 1e15


@dataclass(frozen=True, slots=True)
class Request:
    """One prompt."""

    time_s: float
    n_tokens: int
    keys: Sequence[StateKey]  # of its prefixes, shallow first
    segments: frozenset[int] = frozenset()  # places in `keys` where a declared segment ends


def read_trace(
    path: Path, block_size: int = 512, progress: Callable[[int], None] | None = None
) -> list[Request]:
    """The requests in a file, ordered by time.

    Args:
        path: is read once, from its begin to its end; a pipe will do, and what gzip or zstd packed.
        block_size: tokens, of Mooncake's format.
        progress: is told how many more bytes were read.

    Raises `InputError`, which names the line, for what is no request.
    """
    requests = list(_requests(lines_of(path, progress), str(path), block_size))
    if not requests:
        raise InputError(f"trace {path}: it holds no request")
    requests.sort(key=lambda request: request.time_s)
    span_s = requests[-1].time_s - requests[0].time_s
    if span_s > SPAN_LIMIT_S:
        raise InputError(f"trace {path}: {span_s:g} s lie between its first and its last request")
    return requests


def _requests(lines: Iterable[bytes], where: str, block_size: int) -> Iterator[Request]:
    for number, line in enumerate(lines, 1):
        try:
            if line.strip():
                yield _request(line, block_size)
        except (ValueError, KeyError, TypeError, ArithmeticError) as error:
            says = f"no {error}" if type(error) is KeyError else str(error)
            raise InputError(f"trace {where}, line {number}: no request: {says}") from error


def _request(line: bytes, block_size: int) -> Request:
    fields = _object(line)
    if "hash_ids" in fields:
        return _mooncake(fields, block_size)
    if "keys" in fields:
        return _logged(fields)
    raise ValueError("neither hash_ids (Mooncake's format) nor keys (an access log)")


def _object(line: bytes) -> dict[str, Any]:
    if len(line) > LINE_LIMIT:
        raise ValueError(f"longer than {LINE_LIMIT} bytes")
    try:
        text = line.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError("it is not UTF-8") from error
    try:
        fields = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"it is not one JSON object on a line: {error}") from error
    if type(fields) is not dict:
        raise TypeError(f"a JSON object is wanted, not {type(fields).__name__}")
    return fields


def _mooncake(fields: dict[str, Any], block_size: int) -> Request:
    tokens = _count(fields, "input_length")
    blocks = _list(fields, "hash_ids", int)
    full = tokens // block_size
    if 2 * (len(blocks) + 1) < full or len(blocks) - 1 > 2 * (full + 1):
        raise ValueError(
            f"{len(blocks)} hash_ids for {tokens} tokens: they are not those of blocks of "
            f"{block_size} tokens; name theirs by --block-size"
        )
    blocks = blocks[:full]
    ends = range(block_size, block_size * (len(blocks) + 1), block_size)
    digests = b"".join(map(_digest, blocks, ends))
    return Request(_time(fields, "timestamp") / 1000.0, tokens, Prefixes(digests, ends))


def _digest(block: int, position: int) -> bytes:
    return hashlib.sha256(b"%d %d" % (block, position)).digest()[:KEPT_BYTES]


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
        Prefixes(b"".join(map(_named, names)), array("q", positions)),
        frozenset(place for place, position in enumerate(positions) if position in segments),
    )


def _named(name: str) -> bytes:
    digest = bytes.fromhex(name)
    if len(digest) != KEY_BYTES:
        raise ValueError(f"a key is {2 * KEY_BYTES} hex digits, not {name[:80]!r}")
    return digest


def _count(fields: dict[str, Any], name: str) -> int:
    value = fields[name]
    if type(value) is not int or not 0 <= value <= TOKENS_LIMIT:
        raise ValueError(f"{name} is a count of tokens up to 2**40, not {str(value)[:80]}")
    return value


def _time(fields: dict[str, Any], name: str) -> float:
    value = fields[name]
    if type(value) not in (int, float) or not abs(value) <= TIME_LIMIT:  # nor is NaN
        raise ValueError(f"{name} is no time: {str(value)[:80]}")
    return float(value)


def _list(fields: dict[str, Any], name: str, kind: type) -> list[Any]:
    value = fields[name]
    if type(value) is not list or any(type(item) is not kind for item in value):
        raise ValueError(f"{name} is a list of {kind.__name__}")
    return value
