"""The next token from logits. Deterministic: the same logits, settings and generator state give the
same token.

In this order: penalties for tokens that came before; temperature; the `top_k` most likely tokens;
of those the smallest set that holds at least `top_p` of their probability; of those the ones with
at least `min_p` of the likeliest one's; one of them by its probability. Between equal logits the
lower id counts as the more likely. Everything is computed in float64 on the CPU. Temperature 0 is
greedy and draws no random number.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from math import isfinite
from typing import TypeAlias

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from rwkv_runtime.errors import NumericsError, SamplingError

Ids: TypeAlias = npt.NDArray[np.int64]
Weights: TypeAlias = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Sampling:
    """How to choose. The default is greedy."""

    temperature: float = 0.0
    top_k: int = 0  # 0: all
    top_p: float = 1.0
    min_p: float = 0.0  # of the likeliest token's probability
    presence_penalty: float = 0.0  # off the logit of a token that was generated before
    frequency_penalty: float = 0.0  # times how often it was
    penalty_decay: float = 1.0  # what is left of each count, token by token; RWKV's own use 0.996
    seed: int | None = None  # None, and -1 as elsewhere: another text each time

    def __post_init__(self) -> None:
        """Refuse what means nothing."""
        if not (isfinite(self.temperature) and self.temperature >= 0):
            raise SamplingError(f"temperature is {self.temperature}, expected 0 or more")
        if self.top_k < 0:
            raise SamplingError(f"top_k is {self.top_k}, expected 0 (all) or more")
        if not 0 < self.top_p <= 1:
            raise SamplingError(f"top_p is {self.top_p}, expected more than 0 and at most 1")
        if not 0 <= self.min_p <= 1:
            raise SamplingError(f"min_p is {self.min_p}, expected 0 (off) to 1")
        for name in ("presence_penalty", "frequency_penalty"):
            if not isfinite(getattr(self, name)):
                raise SamplingError(f"{name} is {getattr(self, name)}, expected a number")
        if not 0 <= self.penalty_decay <= 1:
            raise SamplingError(f"penalty_decay is {self.penalty_decay}, expected 0 to 1")
        if self.seed is not None and not -(2**63) <= self.seed < 2**63:
            raise SamplingError(f"seed is {self.seed}, expected -2**63 to 2**63 - 1")

    def generator(self) -> torch.Generator:
        """A new source of randomness, at the start of what `seed` stands for."""
        generator = torch.Generator()
        if self.seed is None or self.seed == -1:
            generator.seed()
        else:
            generator.manual_seed(self.seed)
        return generator

    @property
    def penalises(self) -> bool:
        """Whether earlier tokens matter."""
        return self.presence_penalty != 0 or self.frequency_penalty != 0


class Penalties:
    """How often each token was generated, fading; what that takes off the logits.

    As RWKV's demos have it: before a token is counted, every count shrinks by `penalty_decay`. (The
    package's `PIPELINE` does the same, but counts no blanks and digits, and turns to temperature
    behind `top_p`.)
    """

    def __init__(self, sampling: Sampling) -> None:
        self._sampling = sampling
        self._places: dict[int, int] = {}  # of each token in what follows
        self._tokens = np.empty(0, np.int64)
        self._counts = np.empty(0, np.float64)

    def count(self, token: int) -> None:
        """Note a token that was generated."""
        if not self._sampling.penalises:
            return
        known = len(self._places)
        self._counts[:known] *= self._sampling.penalty_decay
        place = self._places.setdefault(token, known)
        if place == len(self._counts):
            self._grow()
        self._tokens[place] = token
        self._counts[place] += 1.0

    def apply(self, logits: Tensor) -> Tensor:
        """The logits [vocabulary] with the penalties taken off; the given ones stay as they are."""
        known = len(self._places)
        if not known:
            return logits
        tokens = torch.from_numpy(self._tokens[:known]).to(logits.device)
        off = self._counts[:known] * self._sampling.frequency_penalty
        off += self._sampling.presence_penalty
        penalised = logits.to(torch.float64, copy=True)
        penalised[tokens] -= torch.from_numpy(off).to(logits.device)
        return penalised

    def _grow(self) -> None:
        more = max(len(self._counts), 64)
        self._tokens = np.concatenate((self._tokens, np.zeros(more, np.int64)))
        self._counts = np.concatenate((self._counts, np.zeros(more)))


GREEDY = Sampling()


def sample(
    logits: Tensor, sampling: Sampling = GREEDY, generator: torch.Generator | None = None
) -> int:
    """Choose a token.

    Args:
        logits: [vocabulary], of any float dtype and device.
        sampling: How to choose.
        generator: Where randomness comes from, a CPU generator; greedy needs none.

    Raises:
        NumericsError: the logits hold NaN or infinity.
        SamplingError: randomness is wanted and no generator given.
    """
    values = _values(logits)
    # NaN wins both; numpy, because a torch call takes ten times as long, and it is a dozen calls.
    if not (isfinite(values.max()) and isfinite(values.min())):
        raise NumericsError(
            "the logits hold NaN or infinity: the weights are damaged, or overflow in this dtype"
        )
    if sampling.temperature == 0:
        return int(values.argmax())  # numpy's is the first of equals; torch leaves that open
    if generator is None:
        raise SamplingError("sampling at a temperature needs a torch.Generator")
    tokens, weights = _distribution(values, sampling)
    sums = np.cumsum(weights, out=weights)
    point = torch.rand((), dtype=torch.float64, generator=generator, device="cpu").item() * sums[-1]
    index = int(sums.searchsorted(point, side="right"))
    return int(tokens[min(index, len(tokens) - 1)])


def likeliest(logits: Tensor) -> list[int | None]:
    """What greedy sampling chooses from each row of [n, vocabulary], in one go; ``None`` where the
    row holds NaN or infinity.
    """
    rows = logits.detach().cpu().numpy()
    sound = np.isfinite(rows.max(1)) & np.isfinite(rows.min(1))
    first = rows.argmax(1)
    return [int(token) if good else None for token, good in zip(first, sound, strict=True)]


def distribution(logits: Tensor, sampling: Sampling) -> tuple[Ids, Weights]:
    """The tokens that may be chosen, and their weights, which need not add up to 1."""
    return _distribution(_values(logits), sampling)


def _values(logits: Tensor) -> Weights:
    values: Weights = logits.detach().to("cpu", torch.float64).numpy()
    return values


def _distribution(values: Weights, sampling: Sampling) -> tuple[Ids, Weights]:
    # In place where it can be: new memory of this size comes page by page, and costs more than what
    # is computed in it.
    chances = values - values.max()  # 0 and below
    with np.errstate(over="ignore"):  # to minus infinity, at the smallest temperatures
        chances /= sampling.temperature
    tokens = _all_ids(len(chances))
    if 0 < sampling.top_k < len(chances):
        tokens = _candidates(chances, sampling.top_k)
        chances = chances[tokens]
    np.exp(chances, out=chances)
    chances /= chances.sum()
    if sampling.top_p < 1:
        tokens, chances = _nucleus(tokens, chances, sampling.top_p)
    if sampling.min_p > 0:
        likely = chances >= sampling.min_p * chances.max()
        tokens, chances = tokens[likely], chances[likely]
    return tokens, chances


def _nucleus(tokens: Ids, chances: Weights, top_p: float) -> tuple[Ids, Weights]:
    """The smallest set of most likely tokens that holds `top_p`; never empty."""
    # All that are less likely than this hold less than 1 - top_p together: no need to sort them.
    likely = chances >= (1 - top_p) / len(tokens)
    tokens, chances = tokens[likely], chances[likely]
    order = (-chances).argsort(kind="stable")
    tokens, chances = tokens[order], chances[order]
    kept = chances.cumsum() - chances < top_p
    kept[0] = True
    return tokens[kept], chances[kept]


@lru_cache(maxsize=4)
def _all_ids(size: int) -> Ids:
    ids = np.arange(size)
    ids.setflags(write=False)
    return ids


def _candidates(scaled: Weights, top_k: int) -> Ids:
    """Ids of the `top_k` largest, by ascending id; of those equal to the last one the lower ids."""
    size = len(scaled)
    least = np.partition(scaled, size - top_k)[size - top_k]
    above = np.flatnonzero(scaled > least)
    equal = np.flatnonzero(scaled == least)[: top_k - len(above)]
    return np.sort(np.concatenate((above, equal)))
