"""What is asked of the server's streams, and what they tell: plain values."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal, TypeAlias

from rwkv_runtime.generation import Stop
from rwkv_runtime.sampling import GREEDY, Sampling
from statestore.errors import InputError
from statestore.keys import Namespace, Tokens

Reason: TypeAlias = Literal["stop", "length", "cancelled"]


@dataclass(frozen=True, slots=True)
class Request:
    """One prompt and how to go on from it. Raises `InputError` for `max_tokens` below 0."""

    segments: Sequence[Tokens]  # each tokenised on its own
    namespace: Namespace = field(default_factory=Namespace)  # whose states, and their salt
    max_tokens: int = 256
    sampling: Sampling = GREEDY
    stop: Stop = field(default_factory=Stop)
    named_segments: int = 0  # so many, from the first on, are kept whatever they are worth
    grows: bool = False  # the next prompt will begin with these segments, as in a chat

    def __post_init__(self) -> None:
        """Refuse what means nothing."""
        if self.max_tokens < 0:
            raise InputError(f"max_tokens is {self.max_tokens}, expected 0 or more")


@dataclass(frozen=True, slots=True)
class Started:
    """The prompt has been read."""

    prompt_tokens: int
    cached_tokens: int  # whose reading was spared
    computed_tokens: int
    seconds: float  # of reading
    queued_s: float  # from `submit` until reading began


@dataclass(frozen=True, slots=True)
class Piece:
    """One new token, and the text that can be shown since the one before."""

    token: int
    text: str  # "" while a character is open, or what may become a stop text


@dataclass(frozen=True, slots=True)
class Ended:
    """The last event: as it should be, or because somebody cancelled."""

    reason: Reason
    completion_tokens: int  # without an end token


@dataclass(frozen=True, slots=True)
class Failed:
    """The last event: there will be no more. `ClosedError`: the server went before the end."""

    error: Exception


Event: TypeAlias = Started | Piece | Ended | Failed
OnEvent: TypeAlias = Callable[[Event], None]


@dataclass(frozen=True, slots=True)
class Load:
    """What the streams are busy with."""

    width: int  # streams that can be decoded side by side
    active: int  # streams being decoded
    reading: int  # requests whose prompts are being read, or wait for a place beside the others
    waiting: int  # requests that nobody has looked at yet
    documents: int  # documents being read
    steps: int  # decode steps since the beginning
    ready: bool  # it computes, and takes requests
