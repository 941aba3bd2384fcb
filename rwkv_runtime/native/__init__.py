"""Tokens read by compiled C, for those who ask for it (`kernel="native"`).

`rwkv7.c` says what is computed, to the last bit; `compiler` makes a library of it, on the machine
where it runs; `pairs` compares its products with their description; `blocks` lays the matrices out;
`kernel` checks what it is given, and calls; `held` is the memory of a stream that goes on in place.
"""

from __future__ import annotations

from rwkv_runtime.native.blocks import Arranger
from rwkv_runtime.native.compiler import library
from rwkv_runtime.native.held import Held
from rwkv_runtime.native.kernel import REVISION, Kernel

__all__ = ["REVISION", "Arranger", "Held", "Kernel", "library"]
