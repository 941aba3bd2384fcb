"""The engine's library: of the C files beside this one.

Nothing of how it is made decides bits: the sources do. The one instruction that they rely on beyond
IEEE 754 is compared with its description before the library is used (`pairs`).
"""

from __future__ import annotations

import ctypes
from pathlib import Path

from rwkv_runtime.native.pairs import as_described
from statestore.native import Sources, load
from statestore.native.compiler import processor_flags

FOLDER = Path(__file__).parent
SOURCES = Sources(
    FOLDER / "rwkv7.c",
    tuple(sorted(FOLDER.glob("*.h"))),
    title="kernel native",
    otherwise="take --kernel torch",
)
# Where the processor's products of bf16 are not as described, they are made of others.
NO_PAIRS = ("-mno-avx512bf16",)


def library(cache_dir: Path | None = None, flags: tuple[str, ...] | None = None) -> ctypes.CDLL:
    """The loaded library; compiled first where it is not in the cache.

    Args:
        cache_dir: where libraries are kept; by default the user's cache directory.
        flags: of the processor, for tests; by default those of this one.

    Raises:
        SettingsError: no C compiler, or it fails; or the directory is open to others.
    """
    chosen = processor_flags() if flags is None else flags
    made = load(SOURCES, chosen, cache_dir)
    return made if as_described(made) else load(SOURCES, (*chosen, *NO_PAIRS), cache_dir)
