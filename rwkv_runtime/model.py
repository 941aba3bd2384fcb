"""RWKV-7 ("x070"): tokens and a state in, hidden vectors and the next state out.

Functional and differentiable: training, prefill and decoding are the same code. Computes in the
weights' dtype, except the decay and the recurrence: fp32, or float64 for float64 weights, and so is
the state's `att_kv`. The state that is passed in is never written to, unless it is `owned`.
Shapes: B rows, T tokens, C channels, H heads of N = C / H.

It knows nothing of files, tokenizers, chunks or stores.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812 - its usual name

from rwkv_runtime.projection import Projection, projection
from rwkv_runtime.wkv import wkv7

LAYER_NORM_EPS = 1e-5
GROUP_NORM_EPS = 64e-5
DECAY_SCALE = -math.exp(-0.5)
MIXES = ("x_r", "x_w", "x_k", "x_v", "x_a", "x_g")


@dataclass(frozen=True, slots=True)
class LayerState:
    """What one layer remembers."""

    att_x_prev: Tensor  # [B, C]
    att_kv: Tensor  # [B, H, V, K], fp32
    ffn_x_prev: Tensor  # [B, C]


ModelState = tuple[LayerState, ...]


@dataclass(frozen=True, slots=True)
class Norm:
    """A layer norm's parameters."""

    weight: Tensor  # [C]
    bias: Tensor  # [C]


@dataclass(frozen=True, slots=True)
class LowRank:
    """The bias + f(x @ down) @ up"""

    down: Tensor  # [C, D]
    up: Tensor  # [D, C]
    bias: Tensor | None  # [C]


@dataclass(frozen=True, slots=True)
class Attention:
    """The time mixing of one block."""

    mix: Tensor  # [6, 1, 1, C] for r, w, k, v, a, g
    w: LowRank
    a: LowRank
    v: LowRank | None  # None in block 0
    g: LowRank
    k_k: Tensor  # [C]
    k_a: Tensor  # [C]
    r_k: Tensor  # [H, N]
    receptance: Projection  # C -> C, as all four
    key: Projection
    value: Projection
    output: Projection
    ln_x: Norm


@dataclass(frozen=True, slots=True)
class FeedForward:
    """The channel mixing of one block."""

    x_k: Tensor  # [C]
    key: Projection  # C -> 4C
    value: Projection  # 4C -> C


@dataclass(frozen=True, slots=True)
class Block:
    """One layer: time mixing, then channel mixing."""

    ln1: Norm
    att: Attention
    ln2: Norm
    ffn: FeedForward


@dataclass(frozen=True, slots=True)
class Weights:
    """All parameters of a model, in the arrangement that `forward` uses."""

    emb: Tensor  # [vocabulary, C]
    ln0: Norm
    blocks: tuple[Block, ...]
    ln_out: Norm
    head: Projection  # C -> vocabulary

    @classmethod
    def of(cls, tensors: Mapping[str, Tensor]) -> "Weights":
        """Bind tensors under their official names; KeyError names the first that is missing.

        Matrices may be packed: see `projection`.
        """
        layers = 1 + max(int(name.split(".")[1]) for name in tensors if name.startswith("blocks."))
        return cls(
            emb=tensors["emb.weight"],
            ln0=_norm(tensors, "blocks.0.ln0"),
            blocks=tuple(_block(tensors, f"blocks.{layer}", layer) for layer in range(layers)),
            ln_out=_norm(tensors, "ln_out"),
            head=projection(tensors["head.weight"]),
        )

    @property
    def state_dtype(self) -> torch.dtype:
        """Of the recurrence and of `att_kv`."""
        return torch.float64 if self.emb.dtype == torch.float64 else torch.float32


def zero_state(weights: Weights, batch: int = 1) -> ModelState:
    """The state before the first token."""
    heads, width = weights.blocks[0].att.r_k.shape
    vector = weights.emb.new_zeros(batch, heads * width)
    matrix = weights.emb.new_zeros(batch, heads, width, width, dtype=weights.state_dtype)
    return tuple(LayerState(vector, matrix, vector) for _ in weights.blocks)


def forward(
    weights: Weights, tokens: Tensor, state: ModelState, *, owned: bool = False
) -> tuple[Tensor, ModelState]:
    """Read `tokens` [B, T] from `state` -> (hidden [B, T, C] after ln_out, the next state)."""
    streams, after = forward_streams(weights, tokens, state, owned=owned)
    return normed(streams[-1], weights.ln_out), after


def forward_streams(
    weights: Weights, tokens: Tensor, state: ModelState, *, owned: bool = False
) -> tuple[list[Tensor], ModelState]:
    """The same, with the residual stream [B, T, C] after every block for the hidden vectors."""
    x = normed(F.embedding(tokens, weights.emb), weights.ln0)
    v_first: Tensor | None = None
    streams, after = [], []
    for block, before in zip(weights.blocks, state, strict=True):
        xn = normed(x, block.ln1)
        mixed, kv, v_first = _time_mix(
            block.att, xn, before, v_first, weights.state_dtype, owned=owned
        )
        x = x + mixed
        xf = normed(x, block.ln2)
        x = x + _channel_mix(block.ffn, xf, before.ffn_x_prev)
        streams.append(x)
        after.append(LayerState(_last(xn), kv, _last(xf)))
    return streams, tuple(after)


def logits(weights: Weights, hidden: Tensor) -> Tensor:
    """[..., C] -> [..., vocabulary]"""
    return weights.head(hidden)


def _time_mix(
    att: Attention,
    xn: Tensor,
    before: LayerState,
    v_first: Tensor | None,
    state_dtype: torch.dtype,
    *,
    owned: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Normed x [B, T, C] -> (what to add to x, att_kv after, v_first)."""
    heads, width = att.r_k.shape
    split = (*xn.shape[:2], heads, width)
    delta = _shifted(xn, before.att_x_prev) - xn
    xr, xw, xk, xv, xa, xg = torch.addcmul(xn, delta, att.mix).unbind(0)
    r, k, v = att.receptance(xr), att.key(xk), att.value(xv)
    w_log = DECAY_SCALE * torch.sigmoid(_low_rank(att.w, xw, torch.tanh).to(state_dtype))
    a = torch.sigmoid(_low_rank(att.a, xa))
    g = _low_rank(att.g, xg, torch.sigmoid)
    if att.v is None or v_first is None:
        v_first = v
    else:
        v = torch.lerp(v, v_first, torch.sigmoid(_low_rank(att.v, xv)))
    kk = F.normalize((k * att.k_k).view(split), dim=-1, eps=_normal_eps(k.dtype))
    k = k * torch.addcmul(1 - att.k_a, a, att.k_a)
    r, k, v = r.view(split), k.view(split), v.view(split)
    b = kk * a.view(split)
    operands = torch.stack((r, k, v, -kk, b)).to(state_dtype)
    rs, ks, vs, as_, bs = operands.unbind(0)
    y, kv = wkv7(rs, w_log.view(split), ks, vs, as_, bs, before.att_kv, owned=owned)
    bonus = (r * k * att.r_k).sum(-1, keepdim=True) * v
    y = _head_norm(y.to(xn.dtype), att.ln_x) + bonus.flatten(-2)
    return att.output(y * g), kv, v_first


def _normal_eps(dtype: torch.dtype) -> float:
    """The least norm to divide by: to fp16 1e-12 is 0, and a head without keys would be NaN."""
    return 6e-8 if dtype == torch.float16 else 1e-12


def _channel_mix(ffn: FeedForward, xn: Tensor, x_prev: Tensor) -> Tensor:
    """Normed x [B, T, C] -> what to add to x."""
    mixed = torch.addcmul(xn, _shifted(xn, x_prev) - xn, ffn.x_k)
    return ffn.value(ffn.key(mixed).relu().square())


def _last(x: Tensor) -> Tensor:
    """The last token's vectors [B, C] of [B, T, C], in memory of their own that has no gaps.

    A view would keep the whole activation alive; a loaded state has no gaps either.
    """
    return x[:, -1].clone(memory_format=torch.contiguous_format)


def _shifted(x: Tensor, x_prev: Tensor) -> Tensor:
    """Each token's predecessor: [B, T, C] and [B, C] -> [B, T, C]."""
    if x.shape[1] == 1:
        return x_prev.unsqueeze(1)
    return torch.cat((x_prev.unsqueeze(1), x[:, :-1]), dim=1)


def _low_rank(
    pair: LowRank, x: Tensor, activation: Callable[[Tensor], Tensor] | None = None
) -> Tensor:
    """The bias + f(x @ down) @ up"""
    inner = x @ pair.down
    outer = (inner if activation is None else activation(inner)) @ pair.up
    return outer if pair.bias is None else pair.bias + outer


def normed(x: Tensor, norm: Norm) -> Tensor:
    """Layer norm over the channels of [..., C]."""
    return F.layer_norm(x, x.shape[-1:], norm.weight, norm.bias, LAYER_NORM_EPS)


def _head_norm(y: Tensor, norm: Norm) -> Tensor:
    """Normalise each head's y [B, T, H, V] alone -> [B, T, C]."""
    scaled = F.layer_norm(y, y.shape[-1:], eps=GROUP_NORM_EPS)
    return torch.addcmul(norm.bias, scaled.flatten(-2), norm.weight)


def _norm(tensors: Mapping[str, Tensor], prefix: str) -> Norm:
    return Norm(tensors[f"{prefix}.weight"], tensors[f"{prefix}.bias"])


def _block(tensors: Mapping[str, Tensor], prefix: str, layer: int) -> Block:
    return Block(
        ln1=_norm(tensors, f"{prefix}.ln1"),
        att=_attention(tensors, f"{prefix}.att", layer),
        ln2=_norm(tensors, f"{prefix}.ln2"),
        ffn=FeedForward(
            x_k=tensors[f"{prefix}.ffn.x_k"].flatten(),
            key=projection(tensors[f"{prefix}.ffn.key.weight"]),
            value=projection(tensors[f"{prefix}.ffn.value.weight"]),
        ),
    )


def _attention(tensors: Mapping[str, Tensor], prefix: str, layer: int) -> Attention:
    def vector(name: str) -> Tensor:
        return tensors[f"{prefix}.{name}"].flatten()

    def low_rank(name: str) -> LowRank:
        bias = None if name == "g" else vector(f"{name}0")
        return LowRank(tensors[f"{prefix}.{name}1"], tensors[f"{prefix}.{name}2"], bias)

    return Attention(
        mix=torch.stack([vector(name) for name in MIXES])[:, None, None],
        w=low_rank("w"),
        a=low_rank("a"),
        v=low_rank("v") if layer else None,
        g=low_rank("g"),
        k_k=vector("k_k"),
        k_a=vector("k_a"),
        r_k=tensors[f"{prefix}.r_k"],
        receptance=projection(tensors[f"{prefix}.receptance.weight"]),
        key=projection(tensors[f"{prefix}.key.weight"]),
        value=projection(tensors[f"{prefix}.value.weight"]),
        output=projection(tensors[f"{prefix}.output.weight"]),
        ln_x=_norm(tensors, f"{prefix}.ln_x"),
    )
