"""The RWKV-7 recurrence in sub-chunks: matrix products instead of a loop over tokens.

Inside a sub-chunk of L tokens the effect of the state that enters it, S0, is linear. With A_t the
product of w up to t, r' = r A_t, a' = a A_(t-1), k' = k / A_s, b' = b / A_s,
E = (I - tril(a' b'^T, -1))^-1, P = E a' and Q = E tril(a' k'^T, -1) v:

    y = (r' + tril(r' b'^T) P) S0^T + tril(r' k'^T) v + tril(r' b'^T) Q
    S = S0 (diag(A) + P^T b A/A_s) + v^T (k A/A_s) + Q^T (b A/A_s)

All but the product S0 M + D is computed for every sub-chunk at once; that one runs in order. Since
w > 0.545 the factors 1 / A_s stay far inside fp32's range. Differentiable. The bits depend on the
inputs, their shape and the thread count alone.
"""

import torch
from torch import Tensor

# Longer ones are not faster (16, 32, 64 measured), and cost accuracy where w is small.
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


def _equal_chunks(inputs: tuple[Tensor, ...], state: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """The same where T is a multiple of `size`."""
    batch, _, heads, width = inputs[0].shape
    reads, own, moves, writes = _chunk_terms(*(_split(x, size) for x in inputs))
    current = state.reshape(batch * heads, width, width)
    entering = []
    for move, write in zip(moves.unbind(0), writes.unbind(0), strict=True):
        entering.append(current)
        current = torch.baddbmm(write, current, move)
    y = own + reads @ torch.stack(entering).mT
    return _join(y, batch), current.view(state.shape)


def _chunk_terms(
    r: Tensor, w_log: Tensor, k: Tensor, v: Tensor, a: Tensor, b: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Sub-chunks [P, BH, L, N] -> R [.., L, K], Y [.., L, V], M [.., K, K], D [.., V, K].

    What each sub-chunk does to the state S0 that enters it: y = R S0^T + Y, S = S0 M + D.
    """
    size, width = r.shape[-2:]
    total = w_log.cumsum(-2)
    a_in, r_in = a * (total - w_log).exp(), r * total.exp()
    grow = (-total).exp()
    scores = torch.cat((a_in, r_in), -2) @ torch.cat((b * grow, k * grow), -2).mT  # [.., 2L, 2L]
    ab, ak = scores[..., :size, :size].tril(-1), scores[..., :size, size:].tril(-1)
    rb, rk = scores[..., size:, :size].tril(), scores[..., size:, size:].tril()

    eye = torch.eye(size, dtype=r.dtype, device=r.device)
    solve = torch.linalg.solve_triangular(eye - ab, eye.expand_as(ab), upper=False)
    p, q = (solve @ torch.cat((a_in, ak @ v), -1)).split(width, -1)
    to_end = (total[..., -1:, :] - total).exp()
    b_out, k_out = b * to_end, k * to_end
    moves = p.mT @ b_out + torch.diag_embed(total[..., -1, :].exp())
    writes = torch.cat((v, q), -2).mT @ torch.cat((k_out, b_out), -2)
    own = torch.cat((rk, rb), -1) @ torch.cat((v, q), -2)
    return r_in + rb @ p, own, moves, writes


def _split(x: Tensor, size: int) -> Tensor:
    """[B, T, H, N] -> [P, B * H, L, N], the sub-chunk first."""
    batch, length, heads, width = x.shape
    parts = x.reshape(batch, length // size, size, heads, width).permute(1, 0, 3, 2, 4)
    return parts.reshape(length // size, batch * heads, size, width)


def _join(y: Tensor, batch: int) -> Tensor:
    """The reverse of `_split`."""
    count, rows, size, width = y.shape
    parts = y.view(count, batch, rows // batch, size, width).permute(1, 0, 3, 2, 4)
    return parts.reshape(batch, count * size, rows // batch, width)
