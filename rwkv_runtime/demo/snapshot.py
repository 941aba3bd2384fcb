"""A training run on disk: one safetensors file, with the progress as JSON in its metadata.

Optimiser state is kept under the parameters' names, so that a model which has grown goes on from
it: what a snapshot does not name stays as it is. Written under a temporary name and renamed, so
that a run that dies leaves the snapshot before.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

VALUE = "value"  # of a parameter itself, beside its optimiser's names


def save_snapshot(
    path: Path,
    parameters: Mapping[str, Tensor],
    optimisers: Sequence[torch.optim.Optimizer],
    progress: Mapping[str, Any],
) -> None:
    """Write all that a run needs to go on."""
    tensors = {}
    for name, parameter in parameters.items():
        tensors[f"{name}/{VALUE}"] = parameter.detach()
        for key, value in _owner(parameter, optimisers).state[parameter].items():
            tensors[f"{name}/{key}"] = value
    save_tensors(path, tensors, {"progress": json.dumps(progress)})


def load_snapshot(
    path: Path,
    parameters: Mapping[str, Tensor],
    optimisers: Sequence[torch.optim.Optimizer],
) -> dict[str, Any]:
    """Fill `parameters` and the optimisers' state from `path` and return the progress."""
    with safe_open(path, framework="pt") as file:
        for entry in file.keys():  # noqa: SIM118 - not a mapping
            name, key = entry.rsplit("/", 1)
            parameter, found = parameters[name], file.get_tensor(entry)
            if key == VALUE:
                parameter.data.copy_(found)
            else:
                _owner(parameter, optimisers).state[parameter][key] = found.to(parameter.device)
        progress: dict[str, Any] = json.loads(file.metadata()["progress"])
    return progress


def _owner(parameter: Tensor, optimisers: Sequence[torch.optim.Optimizer]) -> torch.optim.Optimizer:
    """The optimiser that trains it."""
    return next(
        optimiser
        for optimiser in optimisers
        if any(parameter is p for group in optimiser.param_groups for p in group["params"])
    )


def save_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: dict[str, str]) -> None:
    """Write a safetensors file, whole or not at all."""
    temporary = path.with_suffix(".partial")
    save_file({name: t.cpu().contiguous() for name, t in tensors.items()}, temporary, metadata)
    temporary.replace(path)
