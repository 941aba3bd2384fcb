"""Which states are worth keeping. Pure: what is known of a boundary in, yes or no out.

* What was asked for by name is kept: a document that is warmed or asked about.
* So is the end of a declared segment of `declared_tokens` or more: whoever declares it means to
  come back.
* Stops along a long segment are kept while it is read, so that another worker can take over. They
  are transient: the segment's own end replaces them.
* In a prompt that grows (a chat) messages are no such segments, except the first: the next turn
  begins at the end. For those who change an earlier message, an end on the way is kept if it is the
  first one past a multiple of an eighth of what follows, of `apart_tokens` at most. The eighth is
  rounded down to a power of two, so that chats that part late keep the same ends.
* Forks, where a prompt parts from an earlier one, are kept the second time their prefix is seen:
  without a word from the caller, the third prompt begins there.
* Anything else, forks included, must spare `gain_tokens` against the nearest state below it, and
  more seconds of computing than fetching it costs. A short question's end is not worth a state of
  megabytes.

Measured times decide what is stored, and never a bit of an answer.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from rwkv_runtime.session.pace import Costs

#: In a chat states lie apart one part in so many of what follows them.
_SHARE: Final = 8


@dataclass(frozen=True, slots=True)
class Candidate:
    """A boundary that has been computed, or will be."""

    transient: bool  # a stop along a segment
    gain_tokens: int  # back to the nearest state that is stored, or will be
    declared_tokens: int  # of the declared segment that ends here; 0: none does
    named: bool  # asked for by name
    reached_tokens: int = 0  # from the prompt's beginning
    left_tokens: int = 0  # of a prompt that grows: from here to its end


@dataclass(frozen=True, slots=True)
class Admission:
    """The rule. Its defaults suit states of megabytes and documents of pages."""

    declared_tokens: int = 256
    gain_tokens: int = 64
    apart_tokens: int = 4096  # in a chat no more lies between two states, and a message
    transient: bool = True  # stops are dropped when their segment's end is stored
    forks: bool = True  # are looked for at all

    def admits(self, candidate: Candidate, costs: Costs) -> bool:
        """Whether to keep the state at this boundary."""
        if candidate.named or candidate.transient:
            return True
        if candidate.declared_tokens >= self.declared_tokens:
            return True
        return (
            candidate.gain_tokens >= self.gain_tokens
            and self._is_due(candidate)
            and candidate.gain_tokens * costs.token_s > costs.fetch_s
        )

    def _is_due(self, candidate: Candidate) -> bool:
        """Whether a multiple lies between the nearest state below and this end."""
        share = max(min(candidate.left_tokens // _SHARE, self.apart_tokens), 1)
        step = 1 << (share.bit_length() - 1)
        below = candidate.reached_tokens - candidate.gain_tokens
        return candidate.left_tokens == 0 or candidate.reached_tokens // step > below // step


@dataclass(frozen=True, slots=True)
class Everything(Admission):
    """Keeps the state at every boundary, for good."""

    transient: bool = False
    forks: bool = False  # between two boundaries

    def admits(self, candidate: Candidate, costs: Costs) -> bool:  # noqa: ARG002 - whatever it is
        """Yes."""
        return True
