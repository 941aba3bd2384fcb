"""Requests side by side: the same bits as alone, bounds, turns and cancelling."""

from __future__ import annotations

import functools
import threading
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rwkv_runtime import Runtime, Stop, load_engine
from rwkv_runtime.engines import Engine, LossyEngine, Rwkv7Engine, load_package_engine
from rwkv_runtime.errors import BusyError, TokenizerError, VocabularyError
from rwkv_runtime.serving import Ended, Failed, Piece, Request, Streams
from rwkv_runtime.session.admission import Everything
from rwkv_runtime.testing import small_architecture, write_random_weights
from statestore import open_store
from statestore.errors import InputError, PromptError
from tests.runtime.serving.listening import (
    ENDLESS,
    HANG_S,
    LONG,
    PROMPTS,
    RULE,
    SAMPLINGS,
    WIDTH,
    Listener,
    all_ended,
    alone,
    by_itself,
    serving,
    submit,
    wait_until,
)
from tests.runtime.weights.old_versions import write_old_weights


@pytest.fixture(scope="module", params=["torch", "native"])
def engine(request: pytest.FixtureRequest, model_path: Path) -> Rwkv7Engine:
    made = load_engine(model_path, rule=RULE, threads=1, kernel=request.param)
    assert isinstance(made, Rwkv7Engine)
    return made


@pytest.fixture(scope="module")
def running(engine: Rwkv7Engine) -> Iterator[Streams]:
    with Runtime(engine, None) as runtime:
        streams = Streams(runtime, width=WIDTH, waiting=1000)
        yield streams
        assert streams.close()


visits = st.tuples(
    st.integers(0, len(PROMPTS) - 1),
    st.integers(0, len(SAMPLINGS) - 1),
    st.sampled_from([1, 2, 7, 24]),  # tokens
    st.sampled_from([None, None, 0, 1, 3]),  # cancelled after so many
    st.integers(0, 3),  # tokens of the last visitor for which the next one waits
)


@settings(max_examples=25)
@given(coming=st.lists(visits, min_size=1, max_size=20))
def test_whoever_comes_and_goes_changes_no_bit(
    running: Streams, engine: Rwkv7Engine, coming: list[tuple[int, int, int, int | None, int]]
) -> None:
    def leave(after: int | None, listener: Listener) -> None:
        if after is not None and len(listener.tokens) >= after and listener.ticket is not None:
            listener.ticket.cancel()

    visitors = []
    for prompt, sampling, tokens, after, pause in coming:
        request = Request([PROMPTS[prompt]], max_tokens=tokens, sampling=SAMPLINGS[sampling])
        visitors.append(submit(running, request, functools.partial(leave, after)))
        visitors[-1].wait_for(pause)
    for listener, (prompt, sampling, tokens, after, _) in zip(visitors, coming, strict=True):
        ended = listener.ended()
        expected = by_itself(engine, prompt, sampling, tokens)
        assert listener.tokens == expected[: len(listener.tokens)]
        assert ended.completion_tokens == len(listener.tokens)
        if after is None:
            assert (ended.reason, len(listener.tokens)) == ("length", tokens)
    wait_until(running, active=0, reading=0, waiting=0)


def test_sixty_four_at_once(running: Streams, engine: Rwkv7Engine) -> None:
    requests = [
        Request([PROMPTS[n % 6]], max_tokens=24, sampling=SAMPLINGS[n % 4]) for n in range(64)
    ]
    listeners = [submit(running, request) for request in requests]
    assert {ended.reason for ended in all_ended(listeners)} == {"length"}
    for n, listener in enumerate(listeners):
        assert listener.tokens == by_itself(engine, n % 6, n % 4, 24)
        assert listener.started.prompt_tokens == len(PROMPTS[n % 6])


def test_the_first_tokens_of_many_come_from_few_steps(running: Streams) -> None:
    """Eight streams of 200 tokens beside each other take the steps of about one."""
    before = running.load().steps
    all_ended([submit(running, Request([PROMPTS[0]], max_tokens=200)) for _ in range(WIDTH)])
    assert running.load().steps - before < 3 * 200


def test_texts_end_as_they_should(running: Streams, engine: Rwkv7Engine) -> None:
    expected = by_itself(engine, 0, 2, 24)
    sampling = SAMPLINGS[2]
    by_token = submit(
        running,
        Request([PROMPTS[0]], sampling=sampling, stop=Stop(tokens=frozenset({expected[5]}))),
    )
    assert by_token.ended() == Ended("stop", expected.index(expected[5]))
    assert by_token.tokens == expected[: expected.index(expected[5])]
    whole = submit(running, Request([PROMPTS[0]], max_tokens=24, sampling=sampling))
    whole.ended()
    word = next(c for c in whole.text[3:] if c.isprintable() and c != "\ufffd")
    by_text = submit(
        running, Request([PROMPTS[0]], max_tokens=24, sampling=sampling, stop=Stop.at(word))
    )
    assert by_text.ended().reason == "stop"
    assert by_text.text == whole.text[: whole.text.index(word)]
    nothing = submit(running, Request([PROMPTS[0]], max_tokens=0))
    assert nothing.ended() == Ended("length", 0)
    assert nothing.tokens == []


def test_mistakes_end_their_own_request_alone(running: Streams) -> None:
    beside = submit(running, Request([PROMPTS[1]], max_tokens=300))
    for segments, error in (([[]], PromptError), ([[1, 256]], VocabularyError)):
        failed = submit(running, Request(segments)).end()
        assert isinstance(failed, Failed)
        assert isinstance(failed.error, error)
    assert beside.ended().completion_tokens == 300
    with pytest.raises(InputError, match="max_tokens"):
        Request([[1]], max_tokens=-1)


def test_stop_texts_need_a_tokenizer(tmp_path: Path) -> None:
    path = tmp_path / "odd.safetensors"
    write_random_weights(path, small_architecture(vocabulary=300))
    streams = serving(load_engine(path, threads=1), None)
    failed = submit(streams, Request([[1]], stop=Stop.at("x"))).end()
    assert isinstance(failed, Failed)
    assert isinstance(failed.error, TokenizerError)
    assert submit(streams, Request([[1]], max_tokens=3)).ended() == Ended("length", 3)
    assert streams.close()


def test_a_full_queue_says_when_to_come_back(engine: Rwkv7Engine) -> None:
    streams = serving(engine, None, readers=1, waiting=2)
    go_on, there = threading.Event(), threading.Event()

    def hold(_: Listener) -> None:
        there.set()
        assert go_on.wait(HANG_S)

    holder = submit(streams, Request([PROMPTS[0]], max_tokens=1), hold)
    assert there.wait(HANG_S)  # the only reader has its hands full
    waiting = [submit(streams, Request([PROMPTS[1]], max_tokens=2)) for _ in range(2)]
    with pytest.raises(BusyError) as busy:
        streams.submit(Request([PROMPTS[0]]), Listener())
    assert 1 <= busy.value.retry_after_s <= 60
    assert streams.load().waiting == 2
    gone = waiting.pop()
    assert gone.ticket is not None
    gone.ticket.cancel()  # its place is free at once
    assert gone.last == Ended("cancelled", 0)
    waiting.append(submit(streams, Request([PROMPTS[1]], max_tokens=2)))
    go_on.set()
    assert all_ended([holder, *waiting]) == [Ended("length", n) for n in (1, 2, 2)]
    assert streams.close()


def test_a_cancelled_stream_frees_its_place(running: Streams) -> None:
    endless = [submit(running, Request([p], max_tokens=ENDLESS)) for p in (PROMPTS * 2)[:WIDTH]]
    for listener in endless:
        listener.wait_for(2)
    ninth = submit(running, Request([PROMPTS[0]], max_tokens=5))
    ninth.wait_for(1)  # from the prompt's logits
    wait_until(running, active=WIDTH, reading=1)
    tenth = submit(running, Request([PROMPTS[0]], max_tokens=5))
    tenth.wait_for(1)
    assert tenth.ticket is not None
    tenth.ticket.cancel()  # while it waits for a place
    assert tenth.ended() == Ended("cancelled", 1)
    assert len(ninth.tokens) == 1
    assert endless[3].ticket is not None
    endless[3].ticket.cancel()
    assert ninth.ended() == Ended("length", 5)
    assert endless[3].ended().reason == "cancelled"
    for listener in endless:
        assert listener.ticket is not None
        listener.ticket.cancel()
        listener.ticket.cancel()
    assert {ended.reason for ended in all_ended(endless)} == {"cancelled"}
    wait_until(running, active=0, reading=0, waiting=0)


def test_a_listener_that_fails_is_no_listener(
    running: Streams, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(listener: Listener) -> None:
        if len(listener.tokens) == 3:
            raise OSError("gone")

    beside = submit(running, Request([PROMPTS[1]], max_tokens=100))
    assert submit(running, Request([PROMPTS[0]], max_tokens=ENDLESS), fail).ended() == Ended(
        "cancelled", 3
    )
    assert beside.ended().completion_tokens == 100
    assert "listener" in caplog.text


class Watched(Rwkv7Engine):
    """The engine itself, and at how many decode steps each chunk was computed."""

    at: list[int]
    streams: Streams

    def prefill(self, tokens: torch.Tensor, state: object) -> tuple[torch.Tensor, object]:  # type: ignore[override]
        self.at.append(self.streams.load().steps)
        return super().prefill(tokens, state)  # type: ignore[arg-type]


@pytest.fixture
def watched(model_path: Path) -> Watched:
    made = load_engine(model_path, rule=RULE, threads=1)
    made.__class__ = Watched
    assert isinstance(made, Watched)
    made.at = []
    return made


def test_streams_and_long_prompts_take_turns(watched: Watched) -> None:
    """Never two chunks without a step between them, whatever number of prompts is read."""
    streams = watched.streams = serving(watched, None)
    beside = submit(streams, Request([PROMPTS[1]], max_tokens=ENDLESS))
    beside.wait_for(2)
    watched.at.clear()
    prompts = [[*LONG, n] for n in range(4)]
    readers = [submit(streams, Request([prompt], max_tokens=1)) for prompt in prompts]
    assert {ended.completion_tokens for ended in all_ended(readers)} == {1}
    assert beside.ticket is not None
    beside.ticket.cancel()
    assert beside.ended().reason == "cancelled"
    assert len(watched.at) == 4 * 60 + 4
    assert all(later > earlier for earlier, later in pairwise(watched.at))
    assert streams.close()


def test_a_reading_that_is_cancelled_stops_between_chunks(watched: Watched, store_url: str) -> None:
    with (
        open_store(store_url) as store,
        Runtime(watched, store, admission=Everything()) as runtime,
    ):
        streams = watched.streams = Streams(runtime, width=WIDTH)

        def tire(listener: Listener) -> None:
            if len(watched.at) > 20 and reader.ticket is not None:
                reader.ticket.cancel()

        beside = submit(streams, Request([PROMPTS[1]], max_tokens=ENDLESS), tire)
        beside.wait_for(2)
        watched.at.clear()
        reader = submit(streams, Request([LONG], max_tokens=1))
        assert reader.ended() == Ended("cancelled", 0)
        assert 20 < len(watched.at) < 60
        computed = len(watched.at)
        # Nobody holds a lease, and what was stored on the way is of use.
        again = submit(streams, Request([LONG], max_tokens=1))
        assert again.ended() == Ended("length", 1)
        assert again.started.cached_tokens >= (computed - 4) * RULE.chunk
        assert streams.close(0.2) is False  # the endless one
        assert isinstance(beside.last, Failed)


@pytest.mark.parametrize("kind", ["lossy", "package"])
def test_engines_without_a_batch_of_their_own(
    kind: str, engine: Rwkv7Engine, tmp_path: Path
) -> None:
    other: Engine = LossyEngine(engine, "int8")
    if kind == "package":
        write_old_weights(tmp_path / "v6.pth", "6")
        other = load_package_engine(tmp_path / "v6.pth", rule=RULE, threads=1, cache_dir=tmp_path)
    streams = serving(other, None)
    requests = [
        Request([PROMPTS[n % 6]], max_tokens=8, sampling=SAMPLINGS[n % 4]) for n in range(12)
    ]
    listeners = [submit(streams, request) for request in requests]
    all_ended(listeners)
    for request, listener in zip(requests, listeners, strict=True):
        assert listener.tokens == alone(other, request, WIDTH)
    assert streams.close()


def test_options_that_mean_nothing_are_refused(engine: Rwkv7Engine) -> None:
    runtime = Runtime(engine, None)
    for options, name in (({"width": 12}, "width"), ({"readers": 0}, "readers")):
        with pytest.raises(InputError, match=name):
            Streams(runtime, **options)
    with pytest.raises(InputError, match="waiting"):
        Streams(runtime, waiting=0)


def test_pieces_are_tokens_one_by_one(running: Streams) -> None:
    heard = submit(running, Request([PROMPTS[5]], max_tokens=16, sampling=SAMPLINGS[3]))
    assert heard.ended() == Ended("length", 16)
    assert [type(event).__name__ for event in heard.events] == (
        ["Started"] + ["Piece"] * 16 + ["Ended"]
    )
    whole = bytes(heard.tokens).decode(errors="replace")
    assert "".join(e.text for e in heard.events if isinstance(e, Piece)) == whole
