"""A backend of your own, in several processes that share what any of them has read.

    uvicorn --app-dir examples --workers 2 backend:app
    curl -sS 'http://127.0.0.1:8000/ask?question=In+which+city+is+Carla+at+home%3F'

Here with Starlette; FastAPI takes the same `lifespan`. Each worker loads the model once, after it
was started: threads, and with them a runtime, do not survive a fork (gunicorn: without --preload).
A store between hosts is another URL, and nothing else changes:
RWKV_STATESTORE_URL='memory:?budget=1GiB redis://cache/0?budget=20GiB'.
"""

import asyncio
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, closing

from starlette.applications import Starlette
from starlette.requests import Request as HttpRequest
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from rwkv_runtime import Runtime, Stop, load_engine
from rwkv_runtime.demo import MODEL_PATH  # or the path of your weights
from rwkv_runtime.demo.corpus import demo_document
from rwkv_runtime.errors import BusyError
from rwkv_runtime.serving import Ended, Event, Failed, Piece, Request, Streams, Ticket
from statestore import open_store

DOCUMENT = demo_document().text


@asynccontextmanager
async def lifespan(app: Starlette) -> AsyncIterator[None]:
    """What a worker has for as long as it lives."""
    engine = load_engine(MODEL_PATH)  # or load_package_engine("v6.pth", "cpu fp32")
    url = os.environ.get("RWKV_STATESTORE_URL", "./states")
    with (
        open_store(url) as store,
        Runtime(engine, store) as runtime,
        closing(Streams(runtime, width=8)) as streams,
    ):
        app.state.streams, app.state.encode = streams, runtime.tokenizer.encode
        yield


async def ask(http: HttpRequest) -> Response:
    """The answer, as it is written."""
    streams, encode = http.app.state.streams, http.app.state.encode
    question = http.query_params["question"]
    prompt = [encode(DOCUMENT), encode(f"\nQ: {question}\nA:")]  # a segment each
    loop, events = asyncio.get_running_loop(), asyncio.Queue[Event]()

    def pass_on(event: Event) -> None:  # from the streams' thread to the loop's
        loop.call_soon_threadsafe(events.put_nowait, event)

    try:
        ticket = streams.submit(Request(prompt, max_tokens=16, stop=Stop.at("\n")), pass_on)
    except BusyError as busy:
        return JSONResponse({"error": str(busy)}, 429)
    return StreamingResponse(pieces(events, ticket), media_type="text/plain; charset=utf-8")


async def pieces(events: asyncio.Queue[Event], ticket: Ticket) -> AsyncIterator[str]:
    """The texts among the events of one answer; a client that goes away ends it."""
    try:
        while not isinstance(event := await events.get(), Ended):
            if isinstance(event, Failed):
                raise event.error
            if isinstance(event, Piece):
                yield event.text
    finally:
        ticket.cancel()  # nothing, once it has ended


app = Starlette(routes=[Route("/ask", ask)], lifespan=lifespan)
