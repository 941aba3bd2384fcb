"""A conversation over a real store: each turn begins where the one before ended, bit for bit."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from rwkv_runtime import Runtime, load_engine
from rwkv_runtime.chat import QA, TEMPLATES, WORLD, ChatTemplate, Message
from rwkv_runtime.conversation import Conversation
from rwkv_runtime.engines import Engine
from rwkv_runtime.sampling import Sampling
from rwkv_runtime.session import Progress
from statestore import ChunkRule, open_store
from statestore.errors import InputError

RULE = ChunkRule(chunk=32, min_chunk=8, stride=4)
SYSTEM = Message("system", "Ada is in the hall. " * 7)
SAID = ["Hi", "Where is Ada now, and who is with her?", "So?", "w " * 60, "ok", "a", "b", "c"]


@pytest.fixture(scope="module")
def engine(model_path: Path) -> Engine:
    return load_engine(model_path, rule=RULE)


@pytest.fixture
def runtime(engine: Engine, store_url: str) -> Iterator[Runtime]:
    with open_store(store_url) as store, Runtime(engine, store) as made:
        yield made


def tokens_of(engine: Engine, texts: list[str]) -> list[list[int]]:
    tokenizer = Runtime(engine, None).tokenizer
    return [tokenizer.encode(text) for text in texts]


@pytest.mark.parametrize("chat", TEMPLATES.values(), ids=TEMPLATES)
@pytest.mark.parametrize("max_tokens", [3, 40])
def test_of_what_was_said_only_the_reply_is_read_again(
    engine: Engine, store_url: str, chat: ChatTemplate, max_tokens: int
) -> None:
    talk, read_before = None, 0
    for text in SAID:
        with open_store(store_url) as store, Runtime(engine, store) as fresh:
            messages = [SYSTEM] if talk is None else talk.messages
            talk = Conversation(fresh, messages, chat=chat, max_tokens=max_tokens)
            list(talk.say(text))
            segments = tokens_of(engine, chat.segments([*messages, Message("user", text)]))
        total = sum(map(len, segments))
        assert talk.cost is not None
        assert talk.cost.cached_tokens + talk.cost.computed_tokens == total
        # All that is new, and at most an open chunk with the prompt behind it.
        assert talk.cost.computed_tokens < total - read_before + RULE.min_chunk + len(segments[-1])
        read_before = total


@pytest.mark.parametrize("chat", TEMPLATES.values(), ids=TEMPLATES)
def test_every_turn_is_bit_for_bit_what_it_is_computed_afresh(
    engine: Engine, store_url: str, chat: ChatTemplate
) -> None:
    with open_store(store_url) as store, Runtime(engine, store) as warm:
        talk = Conversation(warm, [SYSTEM], chat=chat, max_tokens=20)
        for text in SAID:
            before = list(talk.messages)
            reply = "".join(talk.say(text))
            warm.flush()
            alone = Conversation(Runtime(engine, None), before, chat=chat, max_tokens=20)
            assert "".join(alone.say(text)) == reply
            assert alone.cost is not None
            assert alone.cost.cached_tokens == 0
            assert alone.messages == talk.messages
            segments = tokens_of(engine, chat.segments([*before, Message("user", text)]))
            found, computed = warm.prefill(segments), Runtime(engine, None).prefill(segments)
            assert torch.equal(found.logits, computed.logits)


def test_a_history_that_nobody_stored_leaves_one_state_for_the_next_turn(
    runtime: Runtime, store_url: str
) -> None:
    history = [Message(role, f"{i} said") for i in range(20) for role in ("user", "assistant")]
    talk = Conversation(runtime, history, chat=WORLD, max_tokens=3)
    list(talk.say("And now?"))
    runtime.flush()
    assert runtime.store is not None
    positions = [entry.key.n_tokens for entry in runtime.store.list()]
    assert talk.cost is not None
    assert max(positions) > talk.cost.computed_tokens - RULE.min_chunk - len(WORLD.prompt)
    assert len(positions) <= talk.cost.computed_tokens / 64 + 1


def test_a_reply_that_is_cut_off_was_said_as_far_as_it_came(runtime: Runtime) -> None:
    talk = Conversation(runtime, [SYSTEM], chat=QA)
    reply = talk.say("Where is Ada?")
    heard = next(reply) + next(reply) + next(reply)
    reply.close()
    assert talk.messages == [
        SYSTEM,
        Message("user", "Where is Ada?"),
        Message("assistant", heard.strip()),
    ]
    assert next(talk.say("And Bob?")) is not None


def test_a_turn_that_is_interrupted_while_it_reads_was_never_taken(
    runtime: Runtime, engine: Engine
) -> None:
    talk = Conversation(runtime, [SYSTEM], chat=QA, max_tokens=5)
    with pytest.raises(KeyboardInterrupt):
        next(talk.say("Where is Ada?", progress=interrupting()))
    assert (talk.messages, talk.cost) == ([SYSTEM], None)
    alone = Conversation(Runtime(engine, None), [SYSTEM], chat=QA, max_tokens=5)
    assert "".join(talk.say("Where is Ada?")) == "".join(alone.say("Where is Ada?"))


def interrupting() -> Progress:
    def report(done: int, whole: int) -> None:
        if done >= RULE.chunk:
            raise KeyboardInterrupt

    return report


def test_saying_nothing_is_refused_and_changes_nothing(runtime: Runtime) -> None:
    talk = Conversation(runtime, [SYSTEM])
    with pytest.raises(InputError, match="says nothing"):
        next(talk.say(" \n"))
    assert talk.messages == [SYSTEM]


def test_a_reply_stopped_before_its_first_character_was_never_said(runtime: Runtime) -> None:
    """Half a character is held back; of some seeds it is what comes first."""
    for seed in range(200):
        talk = Conversation(runtime, [SYSTEM], sampling=Sampling(temperature=3.0, seed=seed))
        reply = talk.say("Hi")
        if next(reply) == "":
            break
        reply.close()
        assert len(talk.messages) == 3
    else:
        raise AssertionError("no reply began with half a character")
    reply.close()
    assert talk.messages == [SYSTEM]
    assert talk.cost is None
