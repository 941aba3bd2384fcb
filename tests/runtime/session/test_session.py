"""Fetch or compute: what is reused, what is computed, and that no store can break a request."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from rwkv_runtime import Prefill, Runtime, Stop, load_engine
from rwkv_runtime.engines import Engine
from rwkv_runtime.errors import TokenizerError, VocabularyError
from rwkv_runtime.session.admission import Everything
from rwkv_runtime.testing import small_architecture, write_random_weights
from statestore import ChunkRule, EntryFilter, Identity, Namespace, Role, StateStore, open_store
from statestore.backends.lookups import lookups_of
from statestore.backends.wrappers.faulty import Delay, Fail, Fault, Faulty, Operation
from statestore.errors import (
    FullError,
    PromptError,
    StateError,
    TokenError,
    UnavailableError,
)
from statestore.explain import Why

OPERATIONS: tuple[Operation, ...] = ("longest", "read", "publish", "touch", "update")
RULE = ChunkRule(chunk=16, min_chunk=4, stride=2)
DOCUMENT = list(range(1, 101))
QUESTION = [7, 7, 7, 200, 201]


@pytest.fixture(scope="module")
def engine(model_path: Path) -> Engine:
    return load_engine(model_path, rule=RULE)


@pytest.fixture
def store(store_url: str) -> Iterator[StateStore]:
    with open_store(store_url) as opened:
        yield opened


@pytest.fixture
def runtime(engine: Engine, store: StateStore) -> Iterator[Runtime]:
    with keeping_all(engine, store) as made:
        yield made


def keeping_all(engine: Engine, store: StateStore) -> Runtime:
    """A runtime that stores the state at every boundary, worth it or not."""
    return Runtime(engine, store, admission=Everything())


def same(one: Prefill, other: Prefill, engine: Engine) -> bool:
    tensors = [
        [bytes(t.data) for t in engine.to_stored(p.state, p.output).tensors] for p in (one, other)
    ]
    return torch.equal(one.logits, other.logits) and tensors[0] == tensors[1]


def test_a_document_is_read_once(runtime: Runtime, engine: Engine) -> None:
    first = runtime.prefill([DOCUMENT, QUESTION])
    runtime.flush()
    second = runtime.prefill([DOCUMENT, [9, 9, 9, 9, 9]])
    assert (first.cached_tokens, first.computed_tokens) == (0, 105)
    assert (second.cached_tokens, second.computed_tokens) == (100, 5)
    assert same(second, Runtime(engine, None).prefill([DOCUMENT, [9, 9, 9, 9, 9]]), engine)


def test_a_warmed_document_serves_questions_whatever_rest_it_leaves(
    runtime: Runtime, engine: Engine
) -> None:
    """A rest too short for a chunk flows on into the question; the chunks before it are reused."""
    for rest in range(RULE.chunk):
        document = [rest + 1] * (48 + rest)
        runtime.prefill([document])
        runtime.flush()
        asked = runtime.prefill([document, QUESTION])
        expected = 48 + (rest if rest >= RULE.min_chunk else 0)
        assert asked.cached_tokens == expected
        assert same(asked, Runtime(engine, None).prefill([document, QUESTION]), engine)


def test_a_full_hit_computes_nothing(runtime: Runtime, engine: Engine) -> None:
    cold = runtime.prefill([DOCUMENT, QUESTION])
    runtime.flush()
    warm = runtime.prefill([DOCUMENT, QUESTION])
    assert (warm.cached_tokens, warm.computed_tokens) == (105, 0)
    assert same(warm, cold, engine)
    first = next(runtime.continue_from(warm, max_tokens=1))
    assert first.token == int(cold.logits.argmax())


def test_a_full_hit_without_output_falls_back_to_a_shorter_prefix(
    runtime: Runtime, store: StateStore, engine: Engine
) -> None:
    cold = runtime.prefill([DOCUMENT, QUESTION])
    runtime.flush()
    entry = next(e for e in store.list() if e.key.n_tokens == 105)
    store.delete(entry.key)
    bare = engine.to_stored(cold.state, None)
    store.put(
        Identity(engine.fingerprint.digest),
        entry.key,
        bare,
        token_digest=entry.token_digest,
        role=Role.PROMPT,
    )
    again = runtime.prefill([DOCUMENT, QUESTION])
    assert (again.cached_tokens, again.computed_tokens) == (100, 5)
    assert same(again, cold, engine)


def test_states_are_not_shared_mutably(runtime: Runtime, engine: Engine) -> None:
    first = runtime.prefill([DOCUMENT, QUESTION])
    before = [bytes(t.data) for t in engine.to_stored(first.state, first.output).tensors]
    one = [g.token for g in runtime.continue_from(first, max_tokens=20)]
    two = [g.token for g in runtime.continue_from(first, max_tokens=20)]
    after = [bytes(t.data) for t in engine.to_stored(first.state, first.output).tensors]
    assert one == two
    assert before == after


@pytest.mark.parametrize("name", ["m" * 5000, "m\udcff.pth", "m\x00"])
def test_a_model_name_that_no_store_keeps_costs_no_state(
    engine: Engine, store: StateStore, name: str
) -> None:
    with Runtime(engine, store, model=name, admission=Everything()) as runtime:
        runtime.prefill([DOCUMENT])
        runtime.flush()
        assert runtime.prefill([DOCUMENT]).computed_tokens == 0
    models = {entry.model for entry in store.list()}
    assert models <= {"m" * 256, "m?.pth", "m?"}
    assert len(models) == 1


def test_each_question_starts_from_the_document(runtime: Runtime) -> None:
    document = "Some text that is read once. " * 5
    together = [a.answer for a in runtime.ask(document, ["one?", "two?", "one?"], max_tokens=8)]
    alone = [next(runtime.ask(document, [q], max_tokens=8)).answer for q in ("one?", "two?")]
    assert together == [alone[0], alone[1], alone[0]]


def test_progress_ends_at_what_was_computed(runtime: Runtime) -> None:
    seen: list[tuple[int, int]] = []
    runtime.prefill([DOCUMENT], progress=lambda done, total: seen.append((done, total)))
    assert seen[-1] == (100, 100)
    assert [done for done, _ in seen] == sorted(done for done, _ in seen)


@pytest.mark.parametrize("operation", OPERATIONS)
@pytest.mark.parametrize("error", [UnavailableError("down"), FullError("full")])
def test_no_failure_of_the_store_reaches_a_request(
    engine: Engine,
    store: StateStore,
    operation: Operation,
    error: UnavailableError | FullError,
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.CRITICAL)
    with keeping_all(engine, store) as sound:
        expected = sound.prefill([DOCUMENT, QUESTION])
    faulty = Faulty(store.backend, Fault((operation,), Fail(error)))
    broken = StateStore(faulty)
    with keeping_all(engine, broken) as runtime:
        assert same(runtime.prefill([DOCUMENT, QUESTION]), expected, engine)
        assert runtime.prefill([DOCUMENT, QUESTION, QUESTION]).logits.isfinite().all()
    if operation != "update":  # asked for only where a blob is damaged
        assert faulty.struck[operation] > 0
        assert sum(broken.metrics.value("errors_total", operation=o) for o in OPERATIONS_KEPT) > 0


OPERATIONS_KEPT = ("find", "put", "touch")


def test_every_failure_at_once(engine: Engine, store: StateStore) -> None:
    faulty = Faulty(store.backend, Fault(OPERATIONS, Fail(UnavailableError("down"))))
    with Runtime(engine, StateStore(faulty)) as runtime:
        result = runtime.prefill([DOCUMENT, QUESTION])
    assert same(result, Runtime(engine, None).prefill([DOCUMENT, QUESTION]), engine)


def blobs(directory: Path) -> list[Path]:
    return sorted(p for p in (directory / "blobs").rglob("*") if p.is_file())


@pytest.mark.parametrize("damage", ["flip", "truncate", "empty", "remove", "swap"])
def test_damage_costs_computing_and_is_quarantined(
    engine: Engine, store_url: str, tmp_path: Path, damage: str
) -> None:
    with open_store(store_url) as store, keeping_all(engine, store) as runtime:
        runtime.prefill([DOCUMENT, QUESTION])
    files = blobs(tmp_path / "store")
    contents = [path.read_bytes() for path in files]
    for path, content, other in zip(files, contents, contents[1:] + contents[:1], strict=True):
        if damage == "remove":
            path.unlink()
        elif damage == "swap":
            path.write_bytes(other)
        else:
            keep = {"flip": len(content), "truncate": len(content) // 2, "empty": 0}[damage]
            changed = bytearray(content[:keep])
            if damage == "flip":
                changed[len(content) * 2 // 3] ^= 0x10
            path.write_bytes(changed)
    with open_store(store_url) as store, keeping_all(engine, store) as runtime:
        result = runtime.prefill([DOCUMENT, QUESTION])
        assert result.cached_tokens == 0
        assert same(result, Runtime(engine, None).prefill([DOCUMENT, QUESTION]), engine)
        runtime.flush()
        assert runtime.prefill([DOCUMENT, QUESTION]).computed_tokens == 0, "it was not replaced"
        quarantined = [
            store.metrics.value("quarantined_total", cause=cause)
            for cause in ("CorruptError", "TruncatedError", "Missing", "ForeignError")
        ]
        assert sum(quarantined) == len(files)


def test_states_of_other_weights_dtypes_rules_and_namespaces_are_never_used(
    engine: Engine, model_path: Path, store: StateStore, tmp_path: Path
) -> None:
    with Runtime(engine, store) as runtime:
        runtime.prefill([DOCUMENT, QUESTION])
    other_weights = tmp_path / "other.safetensors"
    write_random_weights(other_weights, small_architecture(), seed=2)
    strangers = [
        Runtime(load_engine(other_weights, rule=RULE), store),
        Runtime(load_engine(model_path, dtype="bf16", rule=RULE), store),
        Runtime(load_engine(model_path, rule=ChunkRule(16, 5, 2)), store),
        Runtime(engine, store, namespace=Namespace("tenant")),
        Runtime(engine, store, namespace=Namespace(salt=b"secret")),
    ]
    for stranger in strangers:
        with stranger:
            assert stranger.prefill([DOCUMENT, QUESTION]).cached_tokens == 0


def test_explain_says_why(runtime: Runtime, engine: Engine, model_path: Path) -> None:
    assert runtime.store is not None
    assert {v.why for v in runtime.explain([DOCUMENT, QUESTION])} == {Why.NEVER_STORED}
    runtime.prefill([DOCUMENT, QUESTION])
    assert all(verdict.found for verdict in runtime.explain([DOCUMENT, QUESTION]))
    recut = runtime.explain([DOCUMENT[:56], DOCUMENT[56:], QUESTION])
    assert recut[-1].why is Why.OTHER_SEGMENTS
    with Runtime(load_engine(model_path, dtype="bf16", rule=RULE), runtime.store) as other:
        assert other.explain([DOCUMENT, QUESTION])[-1].why is Why.OTHER_FINGERPRINT
    for entry in list(runtime.store.list(EntryFilter(role=Role.PROMPT))):
        runtime.store.delete(entry.key)
    assert runtime.explain([DOCUMENT, QUESTION])[-1].why is Why.DELETED
    for entry in list(runtime.store.list(EntryFilter(role=Role.SPARSE))):
        runtime.store.backend.delete(entry.key, "quarantined: CorruptError")
    assert runtime.explain([DOCUMENT, QUESTION])[0].why is Why.QUARANTINED
    for entry in list(runtime.store.list(EntryFilter(role=Role.SEGMENT))):
        runtime.store.quarantine(entry, "CorruptError: for the test")
    assert Why.QUARANTINED in {v.why for v in runtime.explain([DOCUMENT, QUESTION])}


def test_bad_prompts_get_clear_errors(runtime: Runtime) -> None:
    with pytest.raises(PromptError, match="empty"):
        runtime.prefill([[], []])
    with pytest.raises(VocabularyError, match="256"):
        runtime.prefill([DOCUMENT, [1, 256]])
    with pytest.raises(TokenError, match="-1"):
        runtime.prefill([[1, -1]])


def test_an_engine_without_a_tokenizer_answers_tokens_only(tmp_path: Path) -> None:
    path = tmp_path / "odd.safetensors"
    write_random_weights(path, small_architecture(vocabulary=300))
    with Runtime(load_engine(path), None) as runtime:
        assert [g.text for g in runtime.generate([[1, 299]], max_tokens=2)] == ["", ""]
        with pytest.raises(TokenizerError, match="300"):
            next(runtime.ask("text", ["question?"]))


def test_stop_text_is_held_back_and_removed(runtime: Runtime) -> None:
    whole = "".join(g.text for g in runtime.generate([DOCUMENT], max_tokens=40))
    stop = whole[10:13]
    cut = "".join(g.text for g in runtime.generate([DOCUMENT], max_tokens=40, stop=Stop.at(stop)))
    assert cut == whole[: whole.index(stop)]


class Misfit:
    """An engine that shares another's fingerprint and does not understand its states."""

    def __init__(self, inner: Engine) -> None:
        self._inner = inner

    def __getattr__(self, name: str) -> object:
        return getattr(self._inner, name)

    def from_stored(self, stored: object) -> object:
        raise StateError("not a state of mine")


def test_a_state_that_the_engine_refuses_is_computed_again(
    engine: Engine, store: StateStore
) -> None:
    with Runtime(engine, store) as runtime:
        cold = runtime.prefill([DOCUMENT, QUESTION])
    with Runtime(Misfit(engine), store) as runtime:  # type: ignore[arg-type]
        assert same(runtime.prefill([DOCUMENT, QUESTION]), cold, engine)
    assert store.metrics.value("quarantined_total", cause="StateError") > 0


def test_several_questions_in_one_call_read_the_document_once(
    engine: Engine, store: StateStore
) -> None:
    slow = StateStore(Faulty(store.backend, Fault(("publish",), Delay(0.3))))
    document = ("Some text that is read once. " * 5)[:144]  # whole chunks
    with Runtime(engine, slow) as runtime:
        answers = list(runtime.ask(document, ["one?", "two?"], max_tokens=1))
    assert [a.cached_tokens for a in answers] == [0, len(document)]


def test_prefixes_without_output_serve_whatever_lies_above_them(
    runtime: Runtime, store: StateStore, engine: Engine
) -> None:
    """Two bare states: the whole prompt's is of no use, the document's is."""
    runtime.prefill([DOCUMENT, QUESTION])
    runtime.flush()
    for entry in list(store.list()):
        if entry.key.n_tokens >= 100:
            found = store.get(Identity(engine.fingerprint.digest), entry.key)
            assert found is not None
            store.delete(entry.key)
            store.put(
                Identity(engine.fingerprint.digest),
                entry.key,
                replace(found.state, output=None),
                token_digest=entry.token_digest,
                role=entry.role,
            )
    assert runtime.prefill([DOCUMENT, QUESTION]).cached_tokens == 100


def test_a_closed_runtime_answers_and_stores_nothing(
    engine: Engine, store: StateStore, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.CRITICAL)
    runtime = Runtime(engine, store)
    runtime.close()
    assert runtime.prefill([DOCUMENT]).computed_tokens == 100
    runtime.flush()
    assert not list(store.list())
    assert store.metrics.value("puts_total", outcome="dropped") > 0


def test_a_closed_store_costs_computing(engine: Engine, store_url: str) -> None:
    store = open_store(store_url)
    store.close()
    with Runtime(engine, store) as runtime:
        assert runtime.prefill([DOCUMENT]).computed_tokens == 100


def test_a_store_whose_directory_vanished_costs_computing(
    engine: Engine, store: StateStore, tmp_path: Path
) -> None:
    with Runtime(engine, store) as runtime:
        cold = runtime.prefill([DOCUMENT, QUESTION])
        runtime.flush()
        shutil.rmtree(tmp_path / "store")
        assert same(runtime.prefill([DOCUMENT, QUESTION]), cold, engine)


def test_logits_belong_to_the_caller(runtime: Runtime) -> None:
    first = runtime.prefill([DOCUMENT])
    expected = first.logits.clone()
    first.logits[3] = -1e9
    runtime.flush()
    assert torch.equal(runtime.prefill([DOCUMENT]).logits, expected)


def test_an_abandoned_text_and_an_interrupted_prompt_leave_a_sound_runtime(
    runtime: Runtime, store: StateStore
) -> None:
    new = runtime.generate([DOCUMENT], max_tokens=50)
    next(new)
    new.close()  # type: ignore[attr-defined]

    def interrupt(done: int, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        runtime.prefill([QUESTION * 20], progress=interrupt)
    runtime.flush()
    assert runtime.prefill([DOCUMENT]).computed_tokens == 0
    assert not any(store.check(entry) for entry in store.list())


def asked(store: StateStore) -> list[tuple[int, int, int, int]]:
    store.flush(60)
    tally = lookups_of(store.backend)
    assert tally is not None
    return [(row.lookups, row.found, row.tokens_asked, row.tokens_found) for row in tally.sums()]


def test_a_prompt_is_one_lookup(runtime: Runtime, store: StateStore) -> None:
    runtime.prefill([DOCUMENT, QUESTION])
    runtime.flush()
    assert asked(store) == [(1, 0, 105, 0)]
    runtime.prefill([DOCUMENT, [9] * 5])
    runtime.flush()
    assert asked(store) == [(2, 1, 210, 100)]
    runtime.explain([DOCUMENT, QUESTION])
    assert asked(store) == [(2, 1, 210, 100)]
