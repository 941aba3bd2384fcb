"""Which states are worth keeping. Pure: what is known of a boundary in, yes or no out.

* What was asked for by name is kept: a document that is warmed or asked about.
* So is the end of a declared segment of `declared_tokens` and more: whoever declares it means to
  come back.
* Stops along a long segment are kept while it is read, so that another worker can take over. They
  are transient: the segment's own end replaces them.
* Forks, where a prompt leaves one that was read before it, are kept the second time their prefix
  is seen: without a word from the caller, the third prompt begins there.
* Anything else, forks included, must spare `gain_tokens` against the nearest state below it, and
  more seconds of computing than it costs to fetch. A short question's end is not worth a state of
  megabytes.

Measured times decide what is stored, and never a bit of an answer.
"""

from __future__ import annotations

from dataclasses import dataclass

from rwkv_runtime.pace import Costs


@dataclass(frozen=True, slots=True)
class Candidate:
    """A boundary that has been computed, or will be."""

    transient: bool  # a stop along a segment
    gain_tokens: int  # back to the nearest state that is stored, or will be
    declared_tokens: int  # of the declared segment that ends here; 0: none does
    named: bool  # asked for by name


@dataclass(frozen=True, slots=True)
class Admission:
    """The rule. Its defaults suit states of megabytes and documents of pages."""

    declared_tokens: int = 256
    gain_tokens: int = 64
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
            and candidate.gain_tokens * costs.token_s > costs.fetch_s
        )


@dataclass(frozen=True, slots=True)
class Everything(Admission):
    """Keeps the state at every boundary, for good."""

    transient: bool = False
    forks: bool = False  # between two boundaries

    def admits(self, candidate: Candidate, costs: Costs) -> bool:  # noqa: ARG002 - whatever it is
        """Yes."""
        return True
