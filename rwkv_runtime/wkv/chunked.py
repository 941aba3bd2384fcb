"""The RWKV-7 recurrence in sub-chunks: matrix products instead of a loop over tokens.

Inside a sub-chunk of L tokens the effect of the state that enters it, S0, is linear. With A_t the
product of w up to t, r' = r A_t, a' = a A_(t-1), k' = k / A_s, b' = b / A_s,
E = (I - tril(a' b'^T, -1))^-1, P = E a' and Q = E tril(a' k'^T, -1) v:

    U = P S0^T + Q
    S = S0 diag(A) + v^T (k A/A_s) + U^T (b A/A_s)
    y = r' S0^T + tril(r' k'^T) v + tril(r' b'^T) U

Only the first two lines depend on the sub-chunk before; everything else is computed for all of them
at once. Since w > 0.545 the factors 1 / A_s stay far inside fp32's range. Differentiable. The bits
depend on the inputs, their shape and the thread count alone.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

# Longer ones are not faster (8, 16, 32, 64 measured), and cost accuracy where w is small.
SUB_CHUNK = 16


def wkv7_chunked(
    r: Tensor, w_log: Tensor, k: Tensor, v: Tensor, a: Tensor, b: Tensor, state: Tensor
) -> tuple[Tensor, Tensor]:
    """Any number of tokens. Inputs [B, T, H, N], state [B, H, V, K] -> (y [B, T, H, V], state)."""
    length = r.shape[1]
    whole = length - length % SUB_CHUNK
    inputs = (r, w_log, k, v, a, b)
    if whole in (0, length):
        return _equal_chunks(inputs, state, min(SUB_CHUNK, length))
    first, state = _equal_chunks(tuple(x[:, :whole] for x in inputs), state, SUB_CHUNK)
    rest, state = _equal_chunks(tuple(x[:, whole:] for x in inputs), state, length - whole)
    return torch.cat((first, rest), dim=1), state


@dataclass(frozen=True, slots=True)
class _Terms:
    """Of every sub-chunk, what does not depend on the one before: P sub-chunks, R = B H rows."""

    reads: Tensor  # r', [P R, L, K]
    scores: Tensor  # of r' with b' and k', masked, [P R, L, 2 L]
    p: Tensor  # [P R, L, K]
    q: Tensor  # [P R, L, V]
    v: Tensor  # [P R, L, V]
    decay: Tensor  # A, [P R, 1, K]
    b_out: Tensor  # b A/A_s, [P R, L, K]
    writes: Tensor  # v^T (k A/A_s), [P R, V, K]


def _equal_chunks(inputs: tuple[Tensor, ...], state: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """The same where T is a multiple of `size`."""
    batch, length, heads, width = inputs[0].shape
    count, rows = length // size, batch * heads
    terms = _terms(*(_split(x, size) for x in inputs))
    current = state.reshape(rows, width, width)
    entering, removed = [], []
    places = (terms.p, terms.q, terms.decay, terms.b_out, terms.writes)
    steps = (term.view(count, rows, *term.shape[1:]).unbind(0) for term in places)
    for p, q, decay, b_out, write in zip(*steps, strict=True):
        entering.append(current)
        u = torch.baddbmm(q, p, current.mT)
        removed.append(u)
        current = torch.baddbmm(torch.addcmul(write, current, decay), u.mT, b_out)
    y = torch.bmm(terms.scores[..., :size], torch.cat(removed))
    y = torch.baddbmm(y, terms.scores[..., size:], terms.v)
    y = torch.baddbmm(y, terms.reads, torch.cat(entering).mT)
    return _join(y, batch, count), current.view(state.shape)


def _terms(r: Tensor, w_log: Tensor, k: Tensor, v: Tensor, a: Tensor, b: Tensor) -> _Terms:
    """Views [P, B, H, L, N] of the inputs -> what `_Terms` says."""
    size, width = r.shape[-2:]
    # One copy for the four that are multiplied with each other, pairs side by side.
    pairs = torch.stack((a, r, b, k), dim=3).view(-1, 4, size, width)
    values, log = v.reshape(-1, size, width), w_log.reshape(-1, size, width)
    total = log.cumsum(-2)
    factors = torch.stack((total - log, total), dim=1).exp()
    left = (pairs[:, :2] * factors).flatten(1, 2)  # a', r': [P R, 2 L, K]
    right = pairs[:, 2:] * (-total).exp().unsqueeze(1)  # b', k': [P R, 2, L, K]
    decay = total[:, -1:].exp()
    out = right * decay.unsqueeze(1)
    scores = torch.bmm(left, right.flatten(1, 2).mT) * _mask(left)  # [P R, 2 L, 2 L]
    eye = torch.eye(size, dtype=r.dtype, device=r.device)
    inverse = torch.linalg.solve_triangular(
        -scores[:, :size, :size], eye.expand(len(left), size, size), upper=False, unitriangular=True
    )
    return _Terms(
        reads=left[:, size:],
        scores=scores[:, size:],
        p=torch.bmm(inverse, left[:, :size]),
        q=torch.bmm(inverse, torch.bmm(scores[:, :size, size:], values)),
        v=values,
        decay=decay,
        b_out=out[:, 0],
        writes=torch.bmm(values.mT, out[:, 1]),
    )


def _mask(left: Tensor) -> Tensor:
    """Ones where a row may see a column: a' those before it, r' itself as well. [2 L, 2 L]"""
    size = left.shape[-2] // 2
    ones = torch.ones(size, size, dtype=left.dtype, device=left.device)
    return torch.cat((ones.tril(-1).repeat(1, 2), ones.tril().repeat(1, 2)))


def _split(x: Tensor, size: int) -> Tensor:
    """[B, T, H, N] -> a view [P, B, H, L, N], the sub-chunk first."""
    batch, length, heads, width = x.shape
    return x.reshape(batch, length // size, size, heads, width).permute(1, 0, 3, 2, 4)


def _join(y: Tensor, batch: int, count: int) -> Tensor:
    """[P B H, L, V] -> [B, T, H, V]"""
    size, width = y.shape[-2:]
    parts = y.view(count, batch, -1, size, width).permute(1, 0, 3, 2, 4)
    return parts.reshape(batch, count * size, -1, width)
