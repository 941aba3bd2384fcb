"""All that decides a state's value besides the tokens, and its digest.

A state is used only under the fingerprint that made it. File names and the tokenizer are not in it:
the key holds token ids. The digest is SHA-256 over the fields as (name, value) texts, sorted by
name and length-prefixed, behind a tag with the key version.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, fields

from statestore.errors import InputError
from statestore.keys import hashing

HEX = re.compile(r"[0-9a-f]*")
_DIGESTS = ("weights_digest", "initial_state", "adapter")
_NUMBERS = ("revision", "chunk", "min_chunk")
_PAIRS = ("shapes", "extra")


@dataclass(frozen=True, slots=True)
class Fingerprint:
    """What a state was computed with. Pairs are sorted on entry; their order means nothing.

    Raises `InputError` that names the field.
    """

    weights_digest: str  # hex
    architecture: str  # "rwkv7"
    shapes: tuple[tuple[str, int], ...]  # ("layers", 12), ("width", 768), ...
    engine: str
    revision: int  # of the engine's numerics: raised by any change of bits
    device: str  # "cpu", "cuda"
    dtype: str  # of the computation
    chunk: int  # tokens
    min_chunk: int  # tokens
    initial_state: str = ""  # hex digest of a tuned state; "" is the zero state
    adapter: str = ""  # hex digest; "" is none
    lossy: str = "none"
    extra: tuple[tuple[str, str], ...] = ()  # the strict profile: threads, CPU, libraries

    def __post_init__(self) -> None:
        for name in _PAIRS:
            object.__setattr__(self, name, _sorted_pairs(name, getattr(self, name)))
        for item in fields(self):
            _check(item.name, getattr(self, item.name))
        for name, text in self._texts():
            hashing.utf8(name + text, f"fingerprint field {name}:")

    @property
    def digest(self) -> bytes:
        """32 bytes; differs as soon as one field does."""
        parts = [hashing.tag("fingerprint")]
        for name, value in sorted(self._texts()):
            parts += [name.encode(), value.encode()]
        return hashing.digest(*parts)

    def to_dict(self) -> dict[str, object]:
        """Every field under its name, for people and JSON; pairs as objects."""
        values: dict[str, object] = {f.name: getattr(self, f.name) for f in fields(self)}
        for name in _PAIRS:
            values[name] = dict(getattr(self, name))
        return values

    def _texts(self) -> Iterable[tuple[str, str]]:
        for item in fields(self):
            value = getattr(self, item.name)
            if item.name in _PAIRS:
                yield from ((f"{item.name}:{name}", str(inner)) for name, inner in value)
            else:
                yield item.name, str(value)


def _sorted_pairs(name: str, pairs: Iterable[tuple[str, object]]) -> tuple[tuple[str, object], ...]:
    kind = int if name == "shapes" else str
    listed = list(pairs)
    for label, value in listed:
        if type(label) is not str or not label or type(value) is not kind:
            raise InputError(
                f"fingerprint field {name}: ({label!r}, {value!r}) is no pair of a name and "
                f"a {kind.__name__}"
            )
    if len({label for label, _ in listed}) != len(listed):
        raise InputError(f"fingerprint field {name} names something twice: {listed}")
    return tuple(sorted(listed, key=lambda pair: pair[0]))


def _check(name: str, value: object) -> None:
    if name in _PAIRS:
        return
    if name in _NUMBERS:
        if type(value) is not int or value < 0:
            raise InputError(f"fingerprint field {name} is a count, not {value!r}")
    elif not isinstance(value, str):
        raise InputError(f"fingerprint field {name} is a text, not {value!r}")
    elif name in _DIGESTS:
        _check_hex(name, value)
    elif not value:
        raise InputError(f"fingerprint field {name} is empty: it decides a state's value, name it")


def _check_hex(name: str, value: str) -> None:
    if not HEX.fullmatch(value) or len(value) % 2:
        raise InputError(f"fingerprint field {name} is a digest in lower-case hex, not {value!r}")
    if name == "weights_digest" and not value:
        raise InputError("fingerprint field weights_digest is empty: digest the weights file")
