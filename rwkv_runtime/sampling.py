"""The next token from logits. Deterministic: the same logits, settings and generator state give the
same token.

In this order: temperature; the `top_k` most likely tokens; of those the smallest set that holds at
least `top_p` of their probability; one of them by its probability. Between equal logits the lower
id counts as the more likely. Everything is computed in float64 on the CPU. Temperature 0 is greedy
and draws no random number.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import isfinite

import torch
from torch import Tensor

from rwkv_runtime.errors import NumericsError, SamplingError


@dataclass(frozen=True, slots=True)
class Sampling:
    """How to choose. The default is greedy."""

    temperature: float = 0.0
    top_k: int = 0  # 0: all
    top_p: float = 1.0
    seed: int | None = None  # None: another text each time

    def __post_init__(self) -> None:
        """Refuse what means nothing."""
        if not (isfinite(self.temperature) and self.temperature >= 0):
            raise SamplingError(f"temperature is {self.temperature}, expected 0 or more")
        if self.top_k < 0:
            raise SamplingError(f"top_k is {self.top_k}, expected 0 (all) or more")
        if not 0 < self.top_p <= 1:
            raise SamplingError(f"top_p is {self.top_p}, expected more than 0 and at most 1")
        if self.seed is not None and not 0 <= self.seed < 2**63:
            raise SamplingError(f"seed is {self.seed}, expected 0 to 2**63 - 1")

    def generator(self) -> torch.Generator:
        """A new source of randomness, at the start of what `seed` stands for."""
        generator = torch.Generator()
        if self.seed is None:
            generator.seed()
        else:
            generator.manual_seed(self.seed)
        return generator


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
    if not bool(logits.isfinite().all()):
        raise NumericsError(
            "the logits hold NaN or infinity: the weights are damaged, or overflow in this dtype"
        )
    if sampling.temperature == 0:
        return int((logits == logits.max()).nonzero()[0, 0])  # argmax leaves ties open
    if generator is None:
        raise SamplingError("sampling at a temperature needs a torch.Generator")
    tokens, weights = distribution(logits, sampling)
    point = torch.rand((), dtype=torch.float64, generator=generator) * weights.sum()
    index = int(torch.searchsorted(weights.cumsum(0), point, right=True))
    return int(tokens[min(index, len(tokens) - 1)])


def distribution(logits: Tensor, sampling: Sampling) -> tuple[Tensor, Tensor]:
    """The tokens that may be chosen, and their weights in float64, which need not add up to 1."""
    logits = logits.detach().to("cpu", torch.float64)
    scaled = (logits - logits.max()) / sampling.temperature  # 0 and below: no overflow to infinity
    tokens = _candidates(scaled, sampling.top_k)
    chances = torch.softmax(scaled[tokens], 0)
    return (tokens, chances) if sampling.top_p == 1 else _nucleus(tokens, chances, sampling.top_p)


def _nucleus(tokens: Tensor, chances: Tensor, top_p: float) -> tuple[Tensor, Tensor]:
    """The smallest set of most likely tokens that holds `top_p`; never empty."""
    # All that are less likely than this hold less than 1 - top_p together: no need to sort them.
    likely = chances >= (1 - top_p) / len(tokens)
    tokens, chances = tokens[likely], chances[likely]
    order = torch.sort(chances, descending=True, stable=True).indices
    tokens, chances = tokens[order], chances[order]
    kept = chances.cumsum(0) - chances < top_p
    kept[0] = True
    return tokens[kept], chances[kept]


def _candidates(scaled: Tensor, top_k: int) -> Tensor:
    """Ids of the `top_k` largest, by ascending id; of those equal to the last one the lower ids."""
    if top_k == 0 or top_k >= len(scaled):
        return torch.arange(len(scaled))
    least = torch.topk(scaled, top_k).values[-1]
    above = (scaled > least).nonzero().flatten()
    equal = (scaled == least).nonzero().flatten()[: top_k - len(above)]
    return torch.cat((above, equal)).sort().values
