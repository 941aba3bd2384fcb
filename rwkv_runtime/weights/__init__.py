"""Files of weights: opened without trust, recognised, read.

rwkv7        the official names -> checked tensors and their dimensions
huggingface  the names of Hugging Face and flash-linear-attention -> the official ones
tuned        state-tuned files: where a model begins instead of at zeros
versions     which RWKV a file holds, 4 to 7
tensors      `.pth` and `.safetensors`, mapped
digests      a file's SHA-256, remembered
"""

from __future__ import annotations

from rwkv_runtime.weights.rwkv7 import (
    Architecture,
    WeightsFile,
    check_kind,
    infer,
    read_weights,
    weights_files,
)

__all__ = ["Architecture", "WeightsFile", "check_kind", "infer", "read_weights", "weights_files"]
