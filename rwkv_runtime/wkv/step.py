"""One token of the RWKV-7 recurrence, for any number of streams: the state is read twice and
written once, instead of seven passes over matrices of its size.

Both products with the state that enters are taken at once, because

    S' r = S (w * r) + (S a) (b . r) + v (k . r)

The bits of a row do not depend on the others. Differentiable; computes in the dtype of its state.
"""

from __future__ import annotations

import torch
from torch import Tensor


def wkv7_single(
    r: Tensor,
    w_log: Tensor,
    k: Tensor,
    v: Tensor,
    a: Tensor,
    b: Tensor,
    state: Tensor,
    *,
    owned: bool = False,
) -> tuple[Tensor, Tensor]:
    """Vectors [B, H, N], state [B, H, V, K] -> (y [B, H, V], state). The same bits where the state
    is `owned`: then it is written to, and needs no second memory.
    """
    batch, heads, width = r.shape
    rows = batch * heads
    w, before = w_log.exp(), state.reshape(rows, width, width)
    read = torch.stack((a, w * r), dim=-2).view(rows, 2, width)
    removed, kept = torch.bmm(read, before.mT).unbind(1)  # [R, V] each
    columns = torch.stack((removed, v.reshape(rows, width)), dim=-1)  # [R, V, 2]
    lines = torch.stack((b, k), dim=-2).view(rows, 2, width)
    decay = w.reshape(rows, 1, width)
    after = before.mul_(decay) if owned else before * decay
    after.baddbmm_(columns, lines)
    weights = torch.bmm(lines, r.reshape(rows, width, 1))  # b . r, k . r: [R, 2, 1]
    y = kept + torch.bmm(columns, weights).squeeze(-1)
    return y.view(batch, heads, width), after.view(state.shape)
