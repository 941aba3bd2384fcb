"""Bodies are bounded one by one and all together, and events reach the loop in order."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Sequence
from typing import Any

import pytest
from starlette.requests import Request

from rwkv_runtime.server.bodies import Bodies
from rwkv_runtime.server.errors import ApiError
from rwkv_runtime.server.relay import Hub
from rwkv_runtime.serving import Piece


def request(parts: Sequence[bytes | None], **headers: str) -> Request:
    """One whose body comes in `parts`; ``None``: nothing more comes, ever."""
    left = list(parts)

    async def receive() -> dict[str, Any]:
        part = left.pop(0)
        if part is None:
            await asyncio.Event().wait()
        return {"type": "http.request", "body": part, "more_body": bool(left)}

    raw = [(name.replace("_", "-").encode(), value.encode()) for name, value in headers.items()]
    return Request({"type": "http", "method": "POST", "headers": raw}, receive)


async def read(bodies: Bodies, asked: Request, limit: int = 100) -> bytes:
    async with bodies.read(asked, limit) as body:
        return body


def refused(bodies: Bodies, asked: Request, limit: int = 100) -> int:
    with pytest.raises(ApiError) as error:
        asyncio.run(read(bodies, asked, limit))
    return error.value.status


def test_a_body_in_parts() -> None:
    assert asyncio.run(read(Bodies(100, 10), request([b"ab", b"", b"cd"]), limit=4)) == b"abcd"


def test_what_is_refused() -> None:
    bodies = Bodies(100, 0.05)
    assert refused(bodies, request([b"ab", b"cd"]), limit=3) == 413
    assert refused(bodies, request([], content_length="101")) == 413
    assert refused(bodies, request([], content_encoding="gzip")) == 415
    assert refused(bodies, request([b"a", None])) == 408
    assert asyncio.run(read(bodies, request([b"x" * 100]))) == b"x" * 100  # all room is free again


def test_nobody_is_waited_for_after_the_end() -> None:
    async def closing() -> list[ApiError]:
        bodies = Bodies(100, 60)
        halves = [asyncio.ensure_future(read(bodies, request([b"a", None]))) for _ in range(2)]
        await asyncio.sleep(0)
        bodies.close()
        later = asyncio.ensure_future(read(bodies, request([None])))
        ended = await asyncio.gather(*halves, later, return_exceptions=True)
        assert await read(bodies, request([b"whole"])) == b"whole"
        return [error for error in ended if isinstance(error, ApiError)]

    errors = asyncio.run(closing())
    assert [error.status for error in errors] == [503, 503, 503]
    assert errors[0].headers["Connection"] == "close"


def test_all_bodies_together_are_bounded() -> None:
    async def both() -> None:
        bodies = Bodies(100, 10)
        async with bodies.read(request([b"x" * 60]), 100):
            with pytest.raises(ApiError) as error:
                await read(bodies, request([b"y" * 60]))
            assert error.value.status == 429
            assert error.value.headers["Retry-After"] == "1"
            assert await read(bodies, request([b"z" * 40])) == b"z" * 40
        assert await read(bodies, request([b"y" * 100])) == b"y" * 100

    asyncio.run(both())


def test_events_of_many_threads_come_in_order() -> None:
    threads, events = 8, 500

    async def collected() -> list[list[int]]:
        hub = Hub()
        relays = [hub.relay() for _ in range(threads)]

        def speak(number: int) -> None:
            for event in range(events):
                relays[number].push(Piece(event, ""))

        speakers = [threading.Thread(target=speak, args=(number,)) for number in range(threads)]
        for speaker in speakers:
            speaker.start()

        async def listen(number: int) -> list[int]:
            seen: list[int] = []
            while len(seen) < events:
                seen += [event.token for event in await relays[number].next()]
            return seen

        heard = await asyncio.gather(*map(listen, range(threads)))
        for speaker in speakers:
            speaker.join()
        assert await relays[0].next(timeout_s=0.01) == []
        return heard

    assert asyncio.run(collected()) == [list(range(events))] * threads


def test_events_for_a_loop_that_has_ended_are_nobodys() -> None:
    async def made() -> Any:
        return Hub().relay()

    asyncio.run(made()).push(Piece(1, ""))
