"""What the processes do that `test_kill.py` kills: the `rwkv-runtime` command, loaded before they
fork.
"""

from __future__ import annotations

import os
import sys

from rwkv_runtime.__main__ import main


def run(arguments: list[str]) -> None:
    """One command, as a shell would start it, its output thrown away."""
    sys.stdout = open(os.devnull, "w")  # noqa: PTH123, SIM115  # lives as long as the process
    main(arguments, prog_name="rwkv-runtime")
