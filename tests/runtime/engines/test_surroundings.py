"""What the program around a runtime tells PyTorch, for a model of its own perhaps, changes no bit
of a state, or is refused by name.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from functools import cache, partial
from pathlib import Path

import pytest
import torch

from rwkv_runtime import Runtime
from rwkv_runtime.engines import Engine, Rwkv7Engine, load_engine, load_package_engine
from rwkv_runtime.engines.batch import Batch
from rwkv_runtime.errors import NumericsError
from rwkv_runtime.sampling import Sampling, sample
from statestore import open_store
from tests.runtime.weights.old_versions import write_old_weights

TOKENS = torch.arange(200) % 256
Around = Callable[[], AbstractContextManager[object]]


@contextmanager
def default_dtype(dtype: torch.dtype) -> Iterator[None]:
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(torch.float32)


@contextmanager
def precision(name: str) -> Iterator[None]:
    torch.set_float32_matmul_precision(name)
    try:
        yield
    finally:
        torch.set_float32_matmul_precision("highest")


HARMLESS: dict[str, Around] = {
    "autocast": partial(torch.autocast, "cpu", dtype=torch.bfloat16),
    "autocast fp16": partial(torch.autocast, "cpu", dtype=torch.float16),
    "default bf16": partial(default_dtype, torch.bfloat16),
    "default fp64": partial(default_dtype, torch.float64),
    "default device": partial(torch.device, "meta"),
}
ENGINES = ("fp32", "bf16", "native fp32", "native bf16", "package")
PAIRS = [
    (kind, around)
    for kind in ENGINES
    for around in HARMLESS
    if (kind, around) != ("package", "default device")  # it makes tensors itself, and fails
]


@pytest.fixture(scope="module")
def load(model_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Engine]:
    old = tmp_path_factory.mktemp("old") / "old.pth"
    write_old_weights(old, "6")

    @cache
    def loaded(kind: str) -> Engine:
        if kind == "package":
            return load_package_engine(old, "cpu bf16", threads=1)
        kernel, _, dtype = kind.rpartition(" ")
        return load_engine(model_path, dtype, threads=1, kernel=kernel or "torch")  # type: ignore[arg-type]

    return loaded


def bits(engine: Engine) -> list[bytes]:
    """Of a state that was read, of one after a decoded token, and of both one's logits."""
    output, state = engine.prefill(TOKENS, engine.initial_state())
    found = [bytes(part.data) for part in engine.to_stored(state, output).parts]
    stored, _ = engine.from_stored(engine.to_stored(state, output))
    after, last = engine.decode(7, stored)
    found += [bytes(part.data) for part in engine.to_stored(last, after).parts]
    return [*found, engine.logits(output).numpy().tobytes(), engine.logits(after).numpy().tobytes()]


@pytest.mark.parametrize(("kind", "around"), PAIRS)
def test_what_a_program_sets_for_its_own_models_changes_no_bit(
    load: Callable[[str], Engine], kind: str, around: str
) -> None:
    engine = load(kind)
    expected = bits(engine)
    with HARMLESS[around]():
        assert bits(engine) == expected


@pytest.mark.parametrize("around", HARMLESS, ids=str)
@pytest.mark.parametrize("kind", ["bf16", "native bf16"])
def test_streams_side_by_side_are_not_touched_either(
    load: Callable[[str], Engine], kind: str, around: str
) -> None:
    engine = load(kind)
    assert isinstance(engine, Rwkv7Engine)

    def stepped() -> bytes:
        batch = Batch(engine, 8)
        place = batch.join(engine.prefill(TOKENS, engine.initial_state())[1])
        return batch.step({place: 7})[place].numpy().tobytes()

    expected = stepped()
    with HARMLESS[around]():
        assert stepped() == expected


@pytest.mark.parametrize("around", HARMLESS, ids=str)
def test_a_seed_means_the_same_in_every_program(around: str) -> None:
    logits = torch.linspace(-1, 1, 500, dtype=torch.float32)
    sampling = Sampling(temperature=1.0, top_p=0.9, seed=5)
    expected = sample(logits, sampling, sampling.generator())
    with HARMLESS[around]():
        assert sample(logits, sampling, sampling.generator()) == expected


@pytest.mark.parametrize(
    "around",
    [partial(precision, "medium"), partial(torch.backends.mkldnn.flags, enabled=False)],
    ids=["precision", "mkldnn"],
)
@pytest.mark.parametrize("kind", ["fp32", "bf16", "package"])
@pytest.mark.filterwarnings("ignore:TF32 acceleration")  # torch's own, of setting any of its flags
def test_a_precision_that_was_changed_since_is_refused_by_name(
    load: Callable[[str], Engine], kind: str, around: Around
) -> None:
    engine = load(kind)
    expected = bits(engine)
    with around(), pytest.raises(NumericsError, match=r"float32_matmul_precision|mkldnn"):
        bits(engine)
    assert bits(engine) == expected


def test_the_kernel_computes_the_same_in_any_precision(load: Callable[[str], Engine]) -> None:
    engine = load("native bf16")
    expected = bits(engine)
    with precision("medium"):
        assert bits(engine) == expected


def test_nothing_of_another_precision_is_stored(
    load: Callable[[str], Engine], store_url: str
) -> None:
    """Another program would find it under the same key."""
    engine = load("fp32")
    document = TOKENS.tolist() * 2
    with open_store(store_url) as store, Runtime(engine, store) as runtime:
        with precision("medium"), pytest.raises(NumericsError):
            runtime.warm([document])
        runtime.flush()
        assert store.backend.usage().entries == 0
        fresh = Runtime(engine, None).prefill([document])
        assert torch.equal(runtime.prefill([document]).logits, fresh.logits)
