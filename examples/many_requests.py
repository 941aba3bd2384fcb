"""A server of your own: requests of an event loop, answered side by side from one set of weights.

    python examples/many_requests.py

`Streams` decodes all of them together, and calls back from its own thread; `rwkv-runtime serve` is
made of the same parts. Fork before the model is loaded, or use the "spawn" method: threads, and
with them the streams, do not survive a fork. Processes share the store, whatever they do.
"""

import asyncio
from collections.abc import AsyncIterator
from contextlib import closing

from rwkv_runtime import Runtime, Stop, load_engine
from rwkv_runtime.demo import MODEL_PATH  # or the path of your weights
from rwkv_runtime.demo.corpus import demo_document
from rwkv_runtime.serving import Ended, Event, Failed, Piece, Request, Streams
from statestore import open_store


async def answer(streams: Streams, prompt: list[list[int]]) -> AsyncIterator[str]:
    """The pieces of one answer, as they are written."""
    loop = asyncio.get_running_loop()
    events = asyncio.Queue[Event]()

    def pass_on(event: Event) -> None:  # from the streams' thread to the loop's
        loop.call_soon_threadsafe(events.put_nowait, event)

    ticket = streams.submit(Request(prompt, max_tokens=16, stop=Stop.at("\n")), pass_on)
    try:
        while not isinstance(event := await events.get(), Ended):
            if isinstance(event, Failed):
                raise event.error
            if isinstance(event, Piece):
                yield event.text
    finally:
        ticket.cancel()  # nothing, once it has ended


async def main() -> None:
    document = demo_document()
    questions = [question.text for question in document.questions[:4]]
    engine = load_engine(MODEL_PATH)
    with (
        open_store("./states") as store,
        Runtime(engine, store) as runtime,
        closing(Streams(runtime, width=8)) as streams,
    ):
        text = runtime.tokenizer

        async def ask(question: str) -> str:
            prompt = [text.encode(document.text), text.encode(f"\nQ: {question}\nA:")]
            return "".join([piece async for piece in answer(streams, prompt)]).strip()

        answers = await asyncio.gather(*map(ask, questions))
    for question, said in zip(questions, answers, strict=True):
        print(question, said)


if __name__ == "__main__":
    asyncio.run(main())
