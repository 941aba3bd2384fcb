"""The RWKV-7 recurrence, one token at a time, as it is defined.

Per head, with the state S of shape [V, K]:

    S = S diag(w) + (S a) b^T + v k^T;    y = S r

The forms that are computed are judged against this one in float64. Differentiable; computes in the
dtype of its state.
"""

import torch
from torch import Tensor


def wkv7_step(
    r: Tensor, w_log: Tensor, k: Tensor, v: Tensor, a: Tensor, b: Tensor, state: Tensor
) -> tuple[Tensor, Tensor]:
    """One token. Vectors [B, H, N], state [B, H, V, K] -> (y [B, H, V], state)."""
    removed = state @ a.unsqueeze(-1)  # [B, H, V, 1]
    decayed = state * w_log.exp().unsqueeze(-2)
    state = decayed + removed * b.unsqueeze(-2) + v.unsqueeze(-1) * k.unsqueeze(-2)
    return (state @ r.unsqueeze(-1)).squeeze(-1), state


def wkv7_reference(
    r: Tensor, w_log: Tensor, k: Tensor, v: Tensor, a: Tensor, b: Tensor, state: Tensor
) -> tuple[Tensor, Tensor]:
    """Any number of tokens. Inputs [B, T, H, N], state [B, H, V, K] -> (y [B, T, H, V], state)."""
    outputs = []
    for t in range(r.shape[1]):
        y, state = wkv7_step(r[:, t], w_log[:, t], k[:, t], v[:, t], a[:, t], b[:, t], state)
        outputs.append(y)
    return torch.stack(outputs, dim=1), state
