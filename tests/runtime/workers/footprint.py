"""A process that loads weights and says what that took.

python -m tests.runtime.workers.footprint MODEL DTYPE
"""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

import torch

from rwkv_runtime import load_engine
from rwkv_runtime.engines.rwkv7 import Rwkv7Engine


def memory(field: str) -> int:
    """Bytes: VmRSS now, VmHWM the most since it was reset."""
    found = re.search(
        rf"^{field}:\s+(\d+) kB", Path("/proc/self/status").read_text("ascii"), re.MULTILINE
    )
    assert found is not None
    return int(found[1]) * 1024


def reset_peak() -> None:
    """Count VmHWM from now on."""
    Path("/proc/self/clear_refs").write_text("5", "ascii")


def main() -> None:
    model, dtype, kernel = sys.argv[1:]
    torch.zeros(8, 8) @ torch.zeros(8, 8)
    before = memory("VmRSS")
    reset_peak()
    engine = load_engine(model, dtype=dtype, threads=1, kernel=kernel)  # type: ignore[arg-type]
    assert isinstance(engine, Rwkv7Engine)
    peak = memory("VmHWM") - before
    print(json.dumps({"peak": peak, "loaded": memory("VmRSS") - before}))


if __name__ == "__main__":
    main()
