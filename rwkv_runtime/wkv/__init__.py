"""The RWKV-7 recurrence ("WKV"): a readable reference and the form that is computed.

`wkv7` chooses by length alone, so its bits are a function of the shape. It knows nothing of blocks,
weights or prompts.
"""

from torch import Tensor

from rwkv_runtime.wkv.chunked import SUB_CHUNK, wkv7_chunked
from rwkv_runtime.wkv.reference import wkv7_reference, wkv7_step
from rwkv_runtime.wkv.step import wkv7_single

__all__ = ["SUB_CHUNK", "wkv7", "wkv7_chunked", "wkv7_reference", "wkv7_single", "wkv7_step"]


def wkv7(
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
    """S = S diag(w) + (S a) b^T + v k^T; y = S r, over T tokens, per head.

    `w_log` is log w; RWKV-7 gives a = -kk and b = kk * a. The inputs are [B, T, H, N] in the dtype
    of the state [B, H, V, K]. Returns y [B, T, H, V] and the state after the last token. An `owned`
    state may be written to.
    """
    if r.shape[1] == 1:
        y, after = wkv7_single(
            r[:, 0], w_log[:, 0], k[:, 0], v[:, 0], a[:, 0], b[:, 0], state, owned=owned
        )
        return y.unsqueeze(1), after
    return wkv7_chunked(r, w_log, k, v, a, b, state)
