"""The `rwkv` package in a process of its own: it changes global settings of torch and warns.

Reads JSON objects from stdin, one a line: {"weights": path without .pth, "runs": [[tokens], ...],
"target": path}. Each run goes on from the state of the one before. Writes logits and state after
every run to the .safetensors file `target`.
"""

from __future__ import annotations

import json
import os
import sys
from typing import Any

os.environ |= {"RWKV_V7_ON": "1", "RWKV_JIT_ON": "0", "RWKV_CUDA_ON": "0"}

import safetensors.torch
import torch
from rwkv.model import RWKV

PARTS = ("att_x_prev", "att_kv", "ffn_x_prev")


def answer(asked: dict[str, Any]) -> None:
    model = RWKV(asked["weights"], "cpu fp32")
    results, state = {}, None
    for number, tokens in enumerate(asked["runs"]):
        logits, state = model.forward(tokens, state)
        results[f"{number}.logits"] = logits.clone()
        for index, tensor in enumerate(state):
            name = f"{number}.blocks.{index // 3}.{PARTS[index % 3]}"
            results[name] = tensor.clone().contiguous()
    safetensors.torch.save_file(results, asked["target"])


if __name__ == "__main__":
    torch.set_num_threads(1)
    for line in sys.stdin:
        answer(json.loads(line))
