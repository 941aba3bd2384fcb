"""Sampling against a plain Python oracle, its limits, and its determinism."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from rwkv.utils import PIPELINE, PIPELINE_ARGS

from rwkv_runtime.errors import NumericsError, SamplingError
from rwkv_runtime.sampling import GREEDY, Penalties, Sampling, distribution, likeliest, sample

# Few distinct values, so that ties are common.
logits_lists = st.lists(st.sampled_from([-3.0, -1.0, 0.0, 0.5, 2.0]), min_size=1, max_size=12)


def oracle(values: list[float], sampling: Sampling) -> dict[int, float]:
    """Token -> chance, computed the slow way."""
    order = sorted(range(len(values)), key=lambda i: (-values[i], i))
    order = order[: sampling.top_k or None]
    raw = {i: math.exp(values[i] / sampling.temperature) for i in order}
    total = sum(raw.values())
    kept, mass = {}, 0.0
    for i in order:
        if kept and mass >= sampling.top_p - 1e-12:
            break
        kept[i] = raw[i] / total
        mass += kept[i]
    kept = {i: p for i, p in kept.items() if p >= sampling.min_p * max(kept.values()) - 1e-15}
    mass = sum(kept.values())
    return {i: chance / mass for i, chance in kept.items()}


@given(
    values=logits_lists,
    temperature=st.sampled_from([0.3, 1.0, 2.5]),
    top_k=st.integers(0, 14),
    top_p=st.sampled_from([0.05, 0.31, 0.77, 0.999, 1.0]),
    min_p=st.sampled_from([0.0, 0.03, 0.4, 1.0]),
)
def test_the_distribution_is_the_oracles(
    values: list[float], temperature: float, top_k: int, top_p: float, min_p: float
) -> None:
    sampling = Sampling(temperature, top_k, top_p, min_p)
    tokens, weights = distribution(torch.tensor(values), sampling)
    found = dict(zip(tokens.tolist(), (weights / weights.sum()).tolist(), strict=True))
    expected = oracle(values, sampling)
    assert found.keys() == expected.keys()
    assert all(found[i] == pytest.approx(expected[i], rel=1e-9) for i in expected)


@given(values=logits_lists)
def test_greedy_takes_the_first_of_the_best(values: list[float]) -> None:
    assert sample(torch.tensor(values), GREEDY) == values.index(max(values))


@given(values=logits_lists, seed=st.integers(0, 2**63 - 1))
def test_top_1_is_greedy(values: list[float], seed: int) -> None:
    sampling = Sampling(1.0, top_k=1, seed=seed)
    assert sample(torch.tensor(values), sampling, sampling.generator()) == values.index(max(values))


@given(
    rows=st.integers(1, 6).flatmap(
        lambda n: st.lists(
            st.lists(st.sampled_from([-3.0, 0.5, 2.0]), min_size=n, max_size=n),
            min_size=1,
            max_size=5,
        )
    ),
    bad=st.sampled_from([None, math.nan, math.inf, -math.inf]),
)
def test_many_rows_at_once_give_what_each_gives(rows: list[list[float]], bad: float | None) -> None:
    if bad is not None:
        rows = [[bad, *rows[0][1:]], *rows[1:]]
    expected = [None if bad is not None and row is rows[0] else row.index(max(row)) for row in rows]
    assert likeliest(torch.tensor(rows)) == expected


def test_a_seed_repeats_the_tokens_and_another_does_not() -> None:
    logits = torch.zeros(1000)

    def tokens(seed: int | None) -> list[int]:
        sampling = Sampling(1.0, seed=seed)
        generator = sampling.generator()
        return [sample(logits, sampling, generator) for _ in range(20)]

    assert tokens(7) == tokens(7)
    assert tokens(7) != tokens(8)
    assert tokens(-7) == tokens(-7) != tokens(7)
    assert tokens(None) != tokens(None)
    assert tokens(-1) != tokens(-1)


def test_tokens_come_as_often_as_their_chances_say() -> None:
    chances = torch.tensor([0.5, 0.3, 0.15, 0.05])
    sampling = Sampling(1.0, seed=1)
    generator = sampling.generator()
    counts = [0] * 4
    for _ in range(4000):
        counts[sample(chances.log(), sampling, generator)] += 1
    chi_squared = sum(
        (n - 4000 * p) ** 2 / (4000 * p) for n, p in zip(counts, chances.tolist(), strict=True)
    )
    assert chi_squared < 16.3  # 99.9 % of honest draws with 3 degrees of freedom


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_every_float_dtype_is_taken(dtype: torch.dtype) -> None:
    sampling = Sampling(0.7, top_k=3, top_p=0.9, seed=3)
    assert sample(torch.eye(5)[2].to(dtype) * 50, sampling, sampling.generator()) == 2


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_logits_that_are_no_numbers_are_refused(bad: float) -> None:
    with pytest.raises(NumericsError, match="NaN or infinity"):
        sample(torch.tensor([0.0, bad]))


def test_temperature_needs_a_generator() -> None:
    with pytest.raises(SamplingError, match="Generator"):
        sample(torch.zeros(3), Sampling(1.0))


@pytest.mark.parametrize(
    ("settings", "name"),
    [
        ({"temperature": -0.1}, "temperature"),
        ({"temperature": math.nan}, "temperature"),
        ({"temperature": math.inf}, "temperature"),
        ({"top_k": -1}, "top_k"),
        ({"top_p": 0.0}, "top_p"),
        ({"top_p": 1.01}, "top_p"),
        ({"min_p": 1.5}, "min_p"),
        ({"presence_penalty": math.nan}, "presence_penalty"),
        ({"frequency_penalty": math.inf}, "frequency_penalty"),
        ({"penalty_decay": -0.1}, "penalty_decay"),
        ({"seed": -(2**63) - 1}, "seed"),
    ],
)
def test_settings_that_mean_nothing_are_named(settings: dict[str, float], name: str) -> None:
    with pytest.raises(SamplingError, match=name):
        Sampling(**settings)  # type: ignore[arg-type]


def test_penalties_are_what_the_counts_say() -> None:
    sampling = Sampling(presence_penalty=0.5, frequency_penalty=0.25, penalty_decay=0.5)
    penalties = Penalties(sampling)
    logits = torch.tensor([1.0, 2.0, 3.0])
    assert torch.equal(penalties.apply(logits), logits)
    for token in (2, 1, 2):
        penalties.count(token)
    # token 2: 1 halved twice, and 1 more; token 1: 1 halved once
    expected = [1.0, 2.0 - 0.5 - 0.25 * 0.5, 3.0 - 0.5 - 0.25 * 1.25]
    assert penalties.apply(logits).tolist() == expected
    assert logits.tolist() == [1.0, 2.0, 3.0]


@given(
    tokens=st.lists(st.integers(0, 299), max_size=200),
    presence=st.sampled_from([0.0, 0.4, -1.0]),
    frequency=st.sampled_from([0.0, 0.3, -0.7]),
    decay=st.sampled_from([1.0, 0.996, 0.0]),
    dtype=st.sampled_from([torch.float32, torch.float64]),
)
def test_penalties_are_the_published_formulas(
    tokens: list[int], presence: float, frequency: float, decay: float, dtype: torch.dtype
) -> None:
    """Those of RWKV's demos, in plain Python; bit for bit, and the logits stay as they were."""
    penalties = Penalties(
        Sampling(presence_penalty=presence, frequency_penalty=frequency, penalty_decay=decay)
    )
    occurrence: dict[int, float] = {}
    for token in tokens:
        penalties.count(token)
        for known in occurrence:
            occurrence[known] *= decay
        occurrence[token] = occurrence.get(token, 0.0) + 1.0
    logits = torch.linspace(-3, 3, 300).to(dtype)
    given = logits.clone()
    expected = logits.double().tolist()
    for token, count in occurrence.items():
        expected[token] -= presence + count * frequency
    assert penalties.apply(logits).tolist() == expected
    assert torch.equal(logits, given)


class Letters:
    """A model that always says the same, and its 26 tokens, as the package's loop wants both."""

    logits = torch.linspace(0.0, 2.0, 26) ** 2

    def forward(self, _tokens: list[int], _state: object) -> tuple[torch.Tensor, None]:
        return self.logits.clone(), None

    def encode(self, text: str) -> list[int]:
        return [ord(letter) - ord("a") for letter in text]

    def decode(self, tokens: list[int]) -> str:
        return "".join(chr(ord("a") + token) for token in tokens)


@pytest.mark.parametrize(
    ("presence", "frequency", "decay"), [(0.4, 0.0, 1.0), (0.0, 0.7, 0.9), (0.3, 0.5, 0.996)]
)
def test_penalties_are_those_of_the_package(
    presence: float, frequency: float, decay: float
) -> None:
    """Held against the loop of its `PIPELINE`, for tokens that are no blanks and digits."""
    letters = Letters()
    theirs = PIPELINE.__new__(PIPELINE)  # without a vocabulary
    theirs.model = theirs.tokenizer = letters
    settings = PIPELINE_ARGS(
        top_p=0.0, top_k=1, alpha_presence=presence, alpha_frequency=frequency, alpha_decay=decay
    )
    sampling = Sampling(presence_penalty=presence, frequency_penalty=frequency, penalty_decay=decay)
    ours, penalties = [], Penalties(sampling)
    for _ in range(120):
        ours.append(sample(penalties.apply(letters.logits), sampling))
        penalties.count(ours[-1])
    assert letters.decode(ours) == theirs.generate("a", token_count=120, args=settings)
    assert len(set(ours)) > 1


def test_without_penalties_earlier_tokens_mean_nothing() -> None:
    penalties = Penalties(Sampling(1.0))
    penalties.count(0)
    logits = torch.tensor([1.0, 2.0])
    assert penalties.apply(logits) is logits


@pytest.mark.parametrize("temperature", [5e-324, 1e-310, 1e-30])
def test_the_smallest_temperature_is_greedy(temperature: float) -> None:
    sampling = Sampling(temperature, seed=1)
    logits = torch.tensor([10.0, 30.0, -20.0, 29.0])
    assert sample(logits, sampling, sampling.generator()) == 1
