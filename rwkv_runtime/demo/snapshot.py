"""A training run on disk: one safetensors file, with the progress as JSON in its metadata.

Written under a temporary name and renamed, so that a run that dies leaves the snapshot before.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

WEIGHTS = "weights"


def save_snapshot(
    path: Path,
    weights: Mapping[str, Tensor],
    optimisers: Sequence[torch.optim.Optimizer],
    progress: Mapping[str, Any],
) -> None:
    """Write all that a run needs to go on."""
    tensors = {f"{WEIGHTS}/{name}": tensor.detach() for name, tensor in weights.items()}
    for number, optimiser in enumerate(optimisers):
        for index, values in optimiser.state_dict()["state"].items():
            tensors |= {f"{number}/{index}/{name}": value for name, value in values.items()}
    save_tensors(path, tensors, {"progress": json.dumps(progress)})


def load_snapshot(
    path: Path, weights: Mapping[str, Tensor], optimisers: Sequence[torch.optim.Optimizer]
) -> dict[str, Any]:
    """Fill `weights` and `optimisers` from `path` and return the progress."""
    states: list[dict[int, dict[str, Tensor]]] = [{} for _ in optimisers]
    with safe_open(path, framework="pt") as file:
        for key in file.keys():  # noqa: SIM118 - not a mapping
            owner, name = key.split("/", 1)
            if owner == WEIGHTS:
                weights[name].data.copy_(file.get_tensor(key))
            else:
                index, field = name.split("/")
                states[int(owner)].setdefault(int(index), {})[field] = file.get_tensor(key)
        progress: dict[str, Any] = json.loads(file.metadata()["progress"])
    for optimiser, state in zip(optimisers, states, strict=True):
        optimiser.load_state_dict({**optimiser.state_dict(), "state": state})
    return progress


def save_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: dict[str, str]) -> None:
    """Write a safetensors file, whole or not at all."""
    temporary = path.with_suffix(".partial")
    save_file({name: t.cpu().contiguous() for name, t in tensors.items()}, temporary, metadata)
    temporary.replace(path)
