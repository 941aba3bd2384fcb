"""A trial: what the learning policy knows of a state since its put or its last use; and how that is
written beside the entry, so that another process goes on from there.

    1 c 3 2 512 1024      version, last use, uses, turn, tokens added, tokens that a use spares

What the entry itself says (role, tokens, moment of the last use) is not said twice.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import lru_cache
from typing import Final, NamedTuple, Self

from statestore.entry import Candidate, Entry, Role
from statestore.eviction.curves import Kind
from statestore.eviction.policy import gain_tokens

#: How a state was last used.
NEW: Final = "new"
AGAIN: Final = "again"  # as a whole prompt
CONTINUED: Final = "continued"
BACK: Final = "fallen back on"  # something deeper was known, and gone
PUT_AGAIN: Final = "put again"

_LETTERS: Final = {"n": NEW, "a": AGAIN, "c": CONTINUED, "b": BACK, "p": PUT_AGAIN}
_NAMES: Final = {use: letter for letter, use in _LETTERS.items()}
_MEMO: Final = re.compile(r"1 ([nacbp]) (\d{1,15}) (\d{1,15}) (\d{1,15}) (\d{1,15})", re.ASCII)
_LIMIT: Final = 10**15  # of a number in a memo
_FINEST: Final = 64  # tokens added; fewer are not told apart


@dataclass(slots=True)
class Trial:
    """An entry since its put or its last use."""

    began: float
    role: Role
    tokens: int
    gain: float  # tokens that a use spares, those of what it continued included
    hits: int
    turn: int  # of a conversation
    added: int  # tokens beyond the nearest prefix known
    use: str = NEW  # how the last use was
    kind: Kind = ()
    running: bool = True
    waited_s: float = 0.0  # of its age, what was noted so far

    @classmethod
    def of(cls, entry: Candidate | Entry, now: float) -> Self:
        """That of an entry that was not met before, by its memo where there is a sound one."""
        spared, tokens = gain_tokens(entry), max(entry.key.n_tokens, 1)
        trial = cls(min(entry.used_at, now), entry.role, tokens, spared, entry.hits, 0, spared)
        if written := _MEMO.fullmatch(entry.memo):
            trial.use = _LETTERS[written[1]]
            trial.hits, trial.turn, trial.added, trial.gain = map(int, written.groups()[1:])
        trial.kind = trial.of_kind()
        return trial

    def memo(self) -> str:
        """What another process reads of it."""
        numbers = (self.hits, self.turn, self.added, round(self.gain))
        return " ".join(["1", _NAMES[self.use], *(str(min(n, _LIMIT - 1)) for n in numbers)])

    def of_kind(self) -> Kind:
        """From the coarse to the fine."""
        use = (self.role, self.use, min(self.hits, 3))
        added = min((self.added // _FINEST).bit_length(), 9)
        return (use, (*use, self.turn > 0, added), (*use, min(self.turn, 6), added))


class Sketch(NamedTuple):
    """Of a trial, what ranks its entry."""

    kind: Kind
    gain: float
    hits: int


def sketch(entry: Candidate | Entry) -> Sketch:
    """That of an entry, by its memo where there is a sound one."""
    return (_written(entry.role, entry.memo) if entry.memo else None) or _sketch_of(
        Trial.of(entry, entry.used_at)
    )


@lru_cache(maxsize=1 << 15)
def _written(role: Role, memo: str) -> Sketch | None:
    """What a memo says; a sample meets the same ones again and again."""
    written = _MEMO.fullmatch(memo)
    if written is None:
        return None
    hits, turn, added, gain = map(int, written.groups()[1:])
    return _sketch_of(Trial(0.0, role, 0, gain, hits, turn, added, _LETTERS[written[1]]))


def _sketch_of(trial: Trial) -> Sketch:
    return Sketch(trial.of_kind(), trial.gain, trial.hits)


def has_memo(entry: Entry) -> bool:
    """Whether a process wrote down what it knew of `entry`."""
    return _MEMO.fullmatch(entry.memo) is not None
