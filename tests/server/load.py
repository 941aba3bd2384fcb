"""Many clients at once, as `openai` makes them: each asks, reads its stream, asks again."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import openai

from rwkv_runtime.demo.corpus import Question


@dataclass
class Seen:
    """What the clients saw."""

    answers: int = 0
    wrong: int = 0
    tokens: int = 0
    seconds: float = 0.0
    failures: list[str] = field(default_factory=list)
    first_token_s: list[float] = field(default_factory=list)


def stormed(url: str, document: str, questions: Sequence[Question], **how: Any) -> Seen:
    """What `storm` sees, in a thread of its own: in this one a browser may have a loop."""
    with ThreadPoolExecutor(1) as own:
        return own.submit(lambda: asyncio.run(storm(url, document, questions, **how))).result()


async def storm(
    url: str,
    document: str,
    questions: Sequence[Question],
    *,
    clients: int,
    seconds: float,
    retries: int = 0,
) -> Seen:
    """`clients` at once, each for `seconds` and to the end of its last answer."""
    seen = Seen()
    began = time.perf_counter()
    async with openai.AsyncOpenAI(
        base_url=f"{url}/v1",
        api_key="none",
        max_retries=retries,
        timeout=120,
    ) as client:
        until = began + seconds
        await asyncio.gather(
            *(_one(client, document, questions[i:] + questions[:i], until, seen, retries)
              for i in (number % len(questions) for number in range(clients)))
        )  # fmt: skip
    seen.seconds = time.perf_counter() - began
    return seen


async def _one(client, document, questions, until, seen, retries):
    turn = 0
    while time.perf_counter() < until or turn == 0:
        question = questions[turn % len(questions)]
        turn += 1
        for _ in range(1 + retries):
            try:
                text, usage = await _asked(client, document, question.text, seen)
            except (openai.APIError, AssertionError, OSError) as error:
                failure = f"{type(error).__name__}: {error}"
                continue
            seen.answers += 1
            seen.tokens += usage.completion_tokens
            seen.wrong += text.strip() != question.answer
            break
        else:
            seen.failures.append(failure)


async def _asked(client, document, question, seen):
    began = time.perf_counter()
    stream = await client.chat.completions.create(
        model="demo",
        messages=[{"role": "user", "content": question}],
        temperature=0,
        max_tokens=32,
        stream=True,
        stream_options={"include_usage": True},
        extra_body={"documents": [document]},
    )
    text, usage = "", None
    async for chunk in stream:
        if chunk.choices and chunk.choices[0].delta.content and not text:
            seen.first_token_s.append(time.perf_counter() - began)
        if chunk.choices:
            text += chunk.choices[0].delta.content or ""
        usage = chunk.usage or usage
    assert usage is not None, "the stream broke off"
    return text, usage
