"""The policy that watches: an entry's worth is what a use spares times how often its kind is used.

What GreedyDual-Size-Frequency guesses from the number of hits is learnt here from the traffic. A
*trial* begins with each put and each use and ends with the next use; its kind says why the state
was saved, how it was last used, and how much was read for it:

* an end of a prompt that was **continued**: in a chat the next turn begins with it, and after that
  nobody comes back. It is worth what such ends turned out to be worth, and what is lost with it is
  what its continuation takes over: that one's gain counts back beyond it.
* an end that was asked for **again** as it is: it will be once more.
* the **turn** of a conversation and the tokens it added: many short turns promise another.

`Curves` learns how often each kind is used at which age. What is worth least of a sample goes, at
the moment when room is needed (`rank`): tokens that a use spares per byte, times the uses per
second that holding on can bring. The score that is written tells the same as well as one moment
can, for whoever drops by scores.

Trials outlive their entries (in this process, the newest `TRIALS`), so that what was dropped too
early is noticed. Lookups tell of uses: see `Learned.seen`; samples tell of those that other
processes served (`Strangers`). Nothing is kept across processes: it is learnt within some hundred
requests.
"""

from __future__ import annotations

import os
import threading
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from statestore.entry import Candidate, Entry, Role
from statestore.eviction.curves import Curves
from statestore.eviction.policy import (
    TRANSIENT,
    Judge,
    Mean,
    Verdict,
    gain_tokens,
    score,
    transient,
)
from statestore.eviction.strangers import Strangers
from statestore.eviction.trials import (
    AGAIN,
    BACK,
    CONTINUED,
    PUT_AGAIN,
    Sketch,
    Trial,
    has_memo,
    sketch,
)
from statestore.eviction.waiting import MOVED_BEFORE, Waiting
from statestore.keys import StateKey

#: Trials that a process remembers; about 20 MB.
TRIALS: Final = 1 << 16
#: Seconds for which a lookup belongs to the prompt that began with it.
PROMPT_S: Final = 30.0
#: An end that was used more often is no turn of a conversation, but what many begin with.
_SHARED: Final = 2


@dataclass(frozen=True, slots=True)
class _Prompt:
    """What a lookup found, for the puts that follow it."""

    began: float
    known: Trial | None  # the deepest prefix known, stored or not
    found: Trial | None  # what the lookup returned


class Learned:
    """See the module. Safe to use from several threads, and from a forked child."""

    name = "learned"

    def __init__(self) -> None:
        self._trials: OrderedDict[bytes, Trial] = OrderedDict()
        self._prompts: OrderedDict[bytes, _Prompt] = OrderedDict()
        self._curves = Curves()
        self._waiting = Waiting(self._curves)
        self._strangers = Strangers(self._curves, TRIALS)
        self._mean = Mean()
        self._idle = Mean(100)
        self._lock = threading.Lock()
        self._process = os.getpid()

    @property
    def judge(self) -> Judge:
        """See `rank`."""
        return self.rank

    def seen(self, keys: Sequence[StateKey], found: Entry | None, now: float) -> None:
        """A lookup of `keys`, deepest first, returned `found`."""
        if not keys:
            return
        if found is not None and transient(found) and found.key == keys[0]:
            return  # whoever looks after a stop; of a prompt that ends there `hit` tells
        with self._mine():
            self._waiting.advance(now, MOVED_BEFORE)
            end = keys[0].digest
            before = self._prompts.get(end)
            if before is not None and 0.0 <= now - before.began < PROMPT_S:
                return  # the same prompt looks again
            known = self._used_deepest(keys, found, now)
            fell_back = found is not None and (known is None or found.key != known[0])
            stored: Trial | None = None
            if found is not None and fell_back:
                stored = self._use(found.key, self._of(found, now), BACK, now)
            elif found is not None and known is not None:
                stored = known[1]
            if found is not None and found.key == keys[0]:
                return  # nothing will be put
            self._prompts[end] = _Prompt(now, known[1] if known else None, stored)
            if len(self._prompts) > TRIALS // 8:
                self._prompts.popitem(last=False)

    def put(self, entry: Entry, age: float, now: float) -> Verdict:
        """On an entry that is about to be stored."""
        if transient(entry):
            return Verdict(now + TRANSIENT)
        with self._mine():
            self._waiting.advance(now)
            prompt = self._prompts.pop(entry.key.digest, None)
            trial = self._placed(entry, prompt, now)
            worth = self._worth(entry, trial)
            self._mean.add(worth)
            return Verdict(self._score(worth, age, now), trial.memo())

    def hit(self, entry: Entry, age: float, now: float) -> Verdict:
        """On an entry that was just used."""
        with self._mine():
            self._waiting.advance(now)
            trial = self._trials.get(entry.key.digest)
            if trial is None or trial.began < now - PROMPT_S:  # no lookup told of it
                trial = self._use(entry.key, self._of(entry, now), AGAIN, now)
            return Verdict(self._score(self._worth(entry, trial), age, now), trial.memo())

    def rank(self, entries: Sequence[Candidate | Entry], now: float) -> list[float]:
        """See `Judge`."""
        with self._mine():
            self._waiting.advance(now)
            known = list(map(sketch, entries))
            for entry, one in zip(entries, known, strict=True):
                self._meet(entry, one, now)
            idle_s = [now - e.used_at if e.used_at < now else 0.0 for e in entries]
            if entries:  # where age alone decides, they are idle for half of what they are held
                self._idle.add(sum(idle_s) / len(entries))
            best = self._curves.best
            return [
                one.gain * best(one.kind, age_s) / _bytes(entry)
                for entry, one, age_s in zip(entries, known, idle_s, strict=True)
            ]

    def _mine(self) -> threading.Lock:
        """The lock; a forked child has its own, which nobody holds."""
        if self._process != os.getpid():
            self._process, self._lock = os.getpid(), threading.Lock()
        return self._lock

    # Trials

    def _used_deepest(
        self, keys: Sequence[StateKey], found: Entry | None, now: float
    ) -> tuple[StateKey, Trial] | None:
        """Note the use of the deepest key that is known, stored or not; what is stored may be known
        by its memo alone.
        """
        written = found.key.digest if found is not None and has_memo(found) else b""
        for key in keys:
            trial = self._trials.get(key.digest)
            if found is not None and key.digest == written:
                trial = self._of(found, now)
            if trial is not None:
                use = AGAIN if key == keys[0] else CONTINUED
                return key, self._use(key, trial, use, now)
        return None

    def _use(self, key: StateKey, trial: Trial, use: str, now: float) -> Trial:
        """End a trial with a use, and begin the next one."""
        if self._trials.get(key.digest) is trial:
            self._waiting.end(trial, now, used=True)
        else:
            self._strangers.used(key.digest, trial.began, trial.kind, trial.tokens, now)
        following = Trial(
            now, trial.role, trial.tokens, trial.gain, trial.hits + 1, trial.turn, trial.added, use
        )
        return self._begin(key, following)

    def _begin(self, key: StateKey, trial: Trial) -> Trial:
        trial.kind = trial.of_kind()
        before = self._trials.pop(key.digest, None)
        if before is not None:
            self._waiting.end(before, trial.began, used=False)
        self._trials[key.digest] = trial
        self._waiting.begin(trial)
        if len(self._trials) > TRIALS:
            _, forgotten = self._trials.popitem(last=False)
            self._waiting.end(forgotten, trial.began, used=False)
        return trial

    def _placed(self, entry: Entry, prompt: _Prompt | None, now: float) -> Trial:
        """The trial that a put begins; one that its own lookup began goes on."""
        known = self._trials.get(entry.key.digest)
        if known is None:
            trial = self._of(entry, now)
            if prompt is not None:
                self._continue(trial, prompt)
            trial = self._begin(entry.key, trial)
        elif known.running and now - known.began < PROMPT_S:
            trial = known
        else:
            again = Trial(
                now, known.role, known.tokens, 0.0, known.hits, known.turn, known.added, PUT_AGAIN
            )
            trial = self._begin(entry.key, again)
        trial.gain = self._gain(entry, prompt)
        return trial

    def _continue(self, trial: Trial, prompt: _Prompt) -> None:
        """What is known of a new end by the prefix that it continues."""
        known = prompt.known
        if known is None or known.tokens >= trial.tokens:
            return
        trial.added = min(trial.added, trial.tokens - known.tokens)
        if trial.role is known.role is Role.PROMPT and known.hits <= _SHARED:
            trial.turn = known.turn + 1

    def _gain(self, entry: Entry, prompt: _Prompt | None) -> float:
        """Tokens that a use spares, beyond the ancestor in so far as that one will not stay."""
        gain = float(gain_tokens(entry))
        found = None if prompt is None else prompt.found
        if found is None or found.tokens != entry.ancestor_tokens:
            return gain
        return gain + (1.0 - min(self._curves.relative(found.kind), 1.0)) * found.gain

    def _of(self, entry: Entry, now: float) -> Trial:
        """The trial of an entry: this process's, or what another has written down since."""
        known = self._trials.get(entry.key.digest)
        if known is None:
            return Trial.of(entry, now)
        if entry.used_at > known.began and has_memo(entry) and entry.memo != known.memo():
            self._waiting.end(known, entry.used_at, used=True)
            return Trial.of(entry, now)
        return known

    def _meet(self, entry: Candidate | Entry, known: Sketch, now: float) -> None:
        """An entry of a sample; others may have put or used it."""
        own = self._trials.get(entry.key.digest)
        if own is not None:
            if entry.used_at <= own.began or known.hits == own.hits or not entry.memo:
                return
            self._waiting.end(own, entry.used_at, used=True)
        tokens = max(entry.key.n_tokens, 1)
        self._strangers.meet(entry.key.digest, entry.used_at, known.kind, tokens, now)

    # Scores

    def _worth(self, entry: Entry, trial: Trial) -> float:
        return trial.gain * self._curves.relative(trial.kind) / _bytes(entry)

    def _score(self, worth: float, age: float, now: float) -> float:
        relative = worth / (self._mean.value or worth or 1.0)
        idle_s = self._idle.value
        return score(relative, now - 2.0 * idle_s if idle_s > 0.0 and age <= now else age, now)


def _bytes(entry: Candidate | Entry) -> int:
    return max(entry.blob_bytes, 1)
