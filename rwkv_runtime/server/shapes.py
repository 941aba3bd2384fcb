"""Answers as OpenAI writes them: whole ones and the chunks of a stream, of both kinds."""

from __future__ import annotations

import secrets
import time
from dataclasses import dataclass, field
from typing import Any

Json = dict[str, Any]


@dataclass(slots=True)
class Spent:
    """What an answer took."""

    prompt_tokens: int = 0
    cached_tokens: int = 0
    completion_tokens: int = 0
    queue_s: float = 0.0  # until the prompt was begun
    prompt_s: float = 0.0  # to read the prompt
    first_token_s: float = 0.0  # from the request to the first token
    total_s: float = 0.0

    @property
    def usage(self) -> Json:
        """OpenAI's `usage`."""
        return {
            "prompt_tokens": self.prompt_tokens,
            "completion_tokens": self.completion_tokens,
            "total_tokens": self.prompt_tokens + self.completion_tokens,
            "prompt_tokens_details": {"cached_tokens": self.cached_tokens},
        }

    @property
    def timings(self) -> Json:
        """Milliseconds; a field of our own."""
        return {
            "queue_ms": round(self.queue_s * 1e3, 3),
            "prompt_ms": round(self.prompt_s * 1e3, 3),
            "first_token_ms": round(self.first_token_s * 1e3, 3),
            "total_ms": round(self.total_s * 1e3, 3),
        }


@dataclass(frozen=True, slots=True)
class Shape:
    """Of one answer."""

    model: str
    fingerprint: str
    chat: bool
    id: str = field(default_factory=lambda: secrets.token_hex(16))
    created: int = field(default_factory=lambda: int(time.time()))

    @property
    def request_id(self) -> str:
        """The id that the answer and its headers bear."""
        return f"{'chatcmpl' if self.chat else 'cmpl'}-{self.id}"

    def whole(self, text: str, reason: str, spent: Spent) -> Json:
        """An answer in one piece."""
        said = {"message": {"role": "assistant", "content": text}} if self.chat else {"text": text}
        kind = "chat.completion" if self.chat else "text_completion"
        choice = {"index": 0, **said, "logprobs": None, "finish_reason": reason}
        return self._object(kind, [choice], usage=spent.usage, timings=spent.timings)

    def opening(self) -> Json | None:
        """The first chunk of a chat's stream, which says who speaks."""
        return self._chunk({"role": "assistant", "content": ""}, None) if self.chat else None

    def piece(self, text: str) -> Json:
        """A chunk with text."""
        return self._chunk({"content": text}, None)

    def closing(self, reason: str) -> Json:
        """The chunk that says why nothing follows."""
        return self._chunk({}, reason)

    def usage(self, spent: Spent) -> Json:
        """The chunk behind the last one, for those who asked for it."""
        return self._object(self._chunk_kind, [], usage=spent.usage, timings=spent.timings)

    @property
    def _chunk_kind(self) -> str:
        return "chat.completion.chunk" if self.chat else "text_completion"

    def _chunk(self, delta: Json, reason: str | None) -> Json:
        said: Json = {"delta": delta} if self.chat else {"text": delta.get("content", "")}
        choice = {"index": 0, **said, "logprobs": None, "finish_reason": reason}
        return self._object(self._chunk_kind, [choice])

    def _object(self, kind: str, choices: list[Json], **more: Json) -> Json:
        return {
            "id": self.request_id,
            "object": kind,
            "created": self.created,
            "model": self.model,
            "system_fingerprint": self.fingerprint,
            "choices": choices,
            **more,
        }
