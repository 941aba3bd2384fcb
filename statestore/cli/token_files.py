"""Prompts as files of token ids.

[[510, 318], [7]]      JSON: a list of segments, or of one segment's ids
510 318                else ids with white space between them, one segment a line
7
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Final

from statestore.errors import InputError

_MAX_BYTES: Final = 64 << 20  # 64 MiB; ten million tokens or so


def read_segments(file: Path) -> list[list[int]]:
    """The segments in `file`; ``-`` is standard input. Ids are not looked at closely.

    Raises:
        InputError: it cannot be read, or does not hold ids.
    """
    content = _content(file)
    if content.lstrip()[:1] == b"[":
        return _of_json(file, content)
    try:
        return [
            [int(word) for word in line.split()] for line in content.splitlines() if line.strip()
        ]
    except ValueError:
        raise InputError(
            f"{file}: not token ids: write numbers, one segment a line, or a JSON list of lists"
        ) from None


def _content(file: Path) -> bytes:
    try:
        if str(file) == "-":
            content = sys.stdin.buffer.read(_MAX_BYTES + 1)
        else:
            with file.open("rb") as opened:
                content = opened.read(_MAX_BYTES + 1)
    except OSError as error:
        raise InputError(f"{file}: {error.strerror}") from error
    if len(content) > _MAX_BYTES:
        raise InputError(f"{file}: larger than 64 MiB")
    return content


def _of_json(file: Path, content: bytes) -> list[list[int]]:
    try:
        value = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{file}: not JSON: {error}") from None
    segments = value if value and all(isinstance(item, list) for item in value) else [value]
    for segment in segments:
        if not all(type(token) is int for token in segment):
            raise InputError(
                f"{file}: a segment is a list of token ids, and a prompt a list of those"
            )
    return segments
