"""One thing that was looked at, how it is, and what to do about it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum

from statestore.errors import StateStoreError


class Level(StrEnum):
    """How it is."""

    OK = "ok"
    WARNING = "warning"  # works, and will not be good for long, or for all
    FAILURE = "failure"


@dataclass(frozen=True, slots=True)
class Finding:
    """What one check found."""

    check: str  # one word
    level: Level
    text: str
    remedy: str = ""
    facts: Mapping[str, object] = field(default_factory=dict)  # what was measured, for scripts
    exit_code: int = 0  # of the error tree; above 0 for a failure

    @classmethod
    def good(cls, check: str, text: str, **facts: object) -> Finding:
        """Nothing to do."""
        return cls(check, Level.OK, text, facts=facts)

    @classmethod
    def doubtful(cls, check: str, text: str, remedy: str, **facts: object) -> Finding:
        """Something to look at."""
        return cls(check, Level.WARNING, text, remedy, facts)

    @classmethod
    def bad(cls, check: str, error: StateStoreError, remedy: str = "", **facts: object) -> Finding:
        """Something that does not work; the error's code is the command's."""
        return cls(check, Level.FAILURE, str(error), remedy, facts, exit_code=error.exit_code)
