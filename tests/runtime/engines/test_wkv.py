"""The chunked recurrence against the token loop in float64, on random and on hostile inputs."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn.functional import normalize

from rwkv_runtime.wkv import SUB_CHUNK, wkv7, wkv7_chunked, wkv7_reference

BOUND = 1e-5
HEADS, WIDTH = 2, 64
LOWEST_W_LOG = -0.606531  # w = 0.545
Inputs = tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]


def make_inputs(
    length: int,
    *,
    batch: int = 1,
    width: int = WIDTH,
    decay: str = "random",
    keys: str = "random",
    rate: str = "random",
    state: str = "random",
    seed: int = 0,
) -> Inputs:
    """What a block may give the recurrence, in float64."""
    generator = torch.Generator().manual_seed(seed)
    size = (batch, length, HEADS, width)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    r, k, v, kk = normal(*size), normal(*size), normal(*size), normal(*size)
    if keys == "equal":
        kk = kk[:, :1].expand(size)
        k = kk.clone()
    kk = normalize(kk, dim=-1)
    learnt = {
        "random": torch.sigmoid(normal(*size)),
        "one": torch.ones(size),
        "zero": torch.zeros(size),
    }
    w_log = {
        "random": LOWEST_W_LOG * torch.sigmoid(3 * normal(*size)),
        "lowest": torch.full(size, LOWEST_W_LOG),
        "none": torch.full(size, -1e-7),
        "mixed": torch.where(normal(*size) > 0, LOWEST_W_LOG, -1e-7),
    }
    before = normal(batch, HEADS, width, width) * (state == "random")
    made = (r, w_log[decay], k, v, -kk, kk * learnt[rate].double(), before)
    # Rounded, so that both precisions compute from the same numbers.
    return tuple(x.float().double() for x in made)  # type: ignore[return-value]


def to_single(inputs: Inputs) -> Inputs:
    return tuple(x.float() for x in inputs)  # type: ignore[return-value]


def relative_error(got: Tensor, expected: Tensor) -> float:
    scale = expected.norm().item()
    return (got.double() - expected).norm().item() / (scale or 1.0)


def worst_error(got: tuple[Tensor, Tensor], expected: tuple[Tensor, Tensor]) -> float:
    return max(relative_error(g, e) for g, e in zip(got, expected, strict=True))


@pytest.mark.parametrize("decay", ["random", "lowest", "none", "mixed"])
@pytest.mark.parametrize("keys", ["random", "equal"])
@pytest.mark.parametrize("rate", ["random", "one", "zero"])
@pytest.mark.parametrize("state", ["random", "zero"])
def test_stays_within_the_bound_of_float64(decay: str, keys: str, rate: str, state: str) -> None:
    inputs = make_inputs(517, decay=decay, keys=keys, rate=rate, state=state)
    exact = wkv7_reference(*inputs)
    error = worst_error(wkv7_chunked(*to_single(inputs)), exact)
    assert error <= BOUND


@pytest.mark.parametrize("decay", ["random", "none"])
@pytest.mark.parametrize("keys", ["random", "equal"])
def test_stays_within_the_bound_over_4096_tokens(decay: str, keys: str) -> None:
    inputs = make_inputs(4096, decay=decay, keys=keys, rate="one")
    exact = wkv7_reference(*inputs)
    assert worst_error(wkv7_chunked(*to_single(inputs)), exact) <= BOUND


def test_over_long_texts_it_is_no_worse_than_the_token_loop() -> None:
    inputs = make_inputs(12_000, decay="none", rate="one", width=16)
    exact = wkv7_reference(*inputs)
    loop = worst_error(wkv7_reference(*to_single(inputs)), exact)
    assert worst_error(wkv7_chunked(*to_single(inputs)), exact) <= max(BOUND, 2 * loop)


@given(length=st.integers(1, 5 * SUB_CHUNK), batch=st.integers(1, 3), seed=st.integers(0, 999))
@settings(max_examples=60, deadline=None)
def test_any_length_agrees_in_float64(length: int, batch: int, seed: int) -> None:
    inputs = make_inputs(length, batch=batch, width=16, seed=seed)
    assert worst_error(wkv7(*inputs), wkv7_reference(*inputs)) <= 1e-12


@given(length=st.integers(2, 100), data=st.data())
@settings(max_examples=30, deadline=None)
def test_two_calls_with_the_state_between_agree_with_one(length: int, data: st.DataObject) -> None:
    cut = data.draw(st.integers(1, length - 1))
    *vectors, state = make_inputs(length, width=16)
    y, after = wkv7(*vectors, state)
    y_first, between = wkv7(*(x[:, :cut] for x in vectors), state)
    y_rest, carried = wkv7(*(x[:, cut:] for x in vectors), between)
    assert worst_error((torch.cat((y_first, y_rest), 1), carried), (y, after)) <= 1e-12


@pytest.mark.parametrize("length", [1, SUB_CHUNK, 3 * SUB_CHUNK + 5, 256])
def test_a_repetition_gives_the_same_bits(length: int) -> None:
    inputs = to_single(make_inputs(length))
    first, second = wkv7(*inputs), wkv7(*inputs)
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def test_a_row_does_not_depend_on_its_neighbours() -> None:
    inputs = to_single(make_inputs(100, batch=3))
    others = to_single(make_inputs(100, batch=3, seed=1))
    mixed = tuple(torch.cat((x[:1], y[1:])) for x, y in zip(inputs, others, strict=True))
    for alone, among in zip(wkv7(*inputs), wkv7(*mixed), strict=True):  # type: ignore[arg-type]
        assert torch.equal(alone[0], among[0])


def test_the_state_passed_in_is_left_alone() -> None:
    for length in (1, 40):
        *vectors, state = make_inputs(length)
        before = state.clone()
        wkv7(*vectors, state)
        assert torch.equal(state, before)


@pytest.mark.parametrize("decay", ["random", "lowest", "none"])
def test_token_by_token_is_no_worse_than_the_token_loop(decay: str) -> None:
    inputs = make_inputs(2000, decay=decay, rate="one", width=16)
    exact = wkv7_reference(*inputs)
    *vectors, state = single = to_single(inputs)
    outputs = []
    for t in range(2000):
        y, state = wkv7(*(x[:, t : t + 1] for x in vectors), state)
        outputs.append(y)
    loop = worst_error(wkv7_reference(*single), exact)
    assert worst_error((torch.cat(outputs, 1), state), exact) <= max(BOUND, 2 * loop)


@pytest.mark.parametrize("width", [8, 16, 32, 64, 128])
def test_single_tokens_do_not_depend_on_neighbours_or_place(width: int) -> None:
    inputs = to_single(make_inputs(1, batch=width))
    _, expected = wkv7(*inputs)
    for place in (0, width - 1):
        others = to_single(make_inputs(1, batch=width, seed=2))
        for mine, theirs in zip(inputs, others, strict=True):
            theirs[place] = mine[3]
        _, found = wkv7(*others)
        assert torch.equal(found[place], expected[3])


@pytest.mark.parametrize("length", [1, 40])
def test_an_owned_state_gives_the_same_bits(length: int) -> None:
    *vectors, state = to_single(make_inputs(length, batch=3))
    expected = wkv7(*vectors, state)
    for got, wanted in zip(wkv7(*vectors, state.clone(), owned=True), expected, strict=True):
        assert torch.equal(got, wanted)


@pytest.mark.parametrize("length", [1, SUB_CHUNK, 2 * SUB_CHUNK + 3])
def test_gradients_agree_with_the_token_loop(length: int) -> None:
    gradients = []
    for function in (wkv7, wkv7_reference):
        inputs = [x.clone().requires_grad_() for x in make_inputs(length, width=16)]
        y, state = function(*inputs)  # type: ignore[arg-type]
        gradients.append(torch.autograd.grad(y.sin().sum() + state.cos().sum(), inputs))
    for got, expected in zip(*gradients, strict=True):
        assert relative_error(got, expected) <= 1e-11
