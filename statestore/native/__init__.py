"""C that is compiled on the machine where it runs, once for each kind of processor.

`compiler` makes a library of C files and loads it; `behind` does so beside a program that goes on
without it meanwhile. What the files compute, and who believes them, is their users' affair.
"""

from __future__ import annotations

from statestore.native.compiler import Sources, load, load_compiled

__all__ = ["Sources", "load", "load_compiled"]
