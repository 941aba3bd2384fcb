"""Recorded requests: what was asked when, as the keys of every prefix that could be stored.

Two formats, one JSON object a line, told apart by their fields:

    {"timestamp": ms, "input_length": tokens, "output_length": tokens, "hash_ids": [int, ...]}
        Mooncake's: one id for each block, which stands for the whole prefix up to the block's end.
        The last block may be a part; only full ones can be found again.
    {"time": s, "n_tokens": tokens, "keys": ["<digest>-<tokens>", ...]}
        an access log: the keys of a prompt's boundaries, shallow first.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from statestore.errors import InputError
from statestore.keys import StateKey


@dataclass(frozen=True, slots=True)
class Request:
    """One prompt."""

    time_s: float
    n_tokens: int
    keys: tuple[StateKey, ...]  # of its prefixes, shallow first


def read_trace(path: Path, block_size: int = 512) -> list[Request]:
    """The requests in a file, ordered by time; `block_size` in tokens, of Mooncake's format.

    Raises `InputError`, which names the line, for what is no request.
    """
    try:
        with path.open(encoding="utf-8") as lines:
            requests = list(_requests(lines, str(path), block_size))
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"trace {path}: {error}") from error
    if not requests:
        raise InputError(f"trace {path}: it holds no request")
    return sorted(requests, key=lambda request: request.time_s)


def _requests(lines: Iterator[str], where: str, block_size: int) -> Iterator[Request]:
    keys: dict[tuple[int, int], StateKey] = {}
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            fields = json.loads(line)
            yield _mooncake(fields, block_size, keys) if "hash_ids" in fields else _logged(fields)
        except (ValueError, KeyError, TypeError) as error:
            raise InputError(f"trace {where}, line {number}: no request: {error!r}") from error


def _mooncake(
    fields: dict[str, Any], block_size: int, keys: dict[tuple[int, int], StateKey]
) -> Request:
    tokens = int(fields["input_length"])
    full = fields["hash_ids"][: tokens // block_size]
    prefixes = tuple(
        _once(keys, (int(block), (place + 1) * block_size)) for place, block in enumerate(full)
    )
    return Request(float(fields["timestamp"]) / 1000.0, tokens, prefixes)


def _once(keys: dict[tuple[int, int], StateKey], block: tuple[int, int]) -> StateKey:
    """The key of a block, the same object for each request that has it."""
    key = keys.get(block)
    if key is None:
        digest = hashlib.sha256(b"%d" % block[0]).digest()
        key = keys[block] = StateKey(digest, block[1])
    return key


def _logged(fields: dict[str, Any]) -> Request:
    parse: Callable[[str], StateKey] = StateKey.parse
    return Request(
        float(fields["time"]), int(fields["n_tokens"]), tuple(map(parse, fields["keys"]))
    )
