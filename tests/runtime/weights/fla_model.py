"""A model in Hugging Face's form, from random weights; and what flash-linear-attention itself makes
of it, kept in ``tests/golden/fla_rwkv7.safetensors``.

To record that anew, with its packages installed (it runs on a CPU, in Triton's interpreter):

    TRITON_INTERPRET=1 python -m tests.runtime.weights.fla_model
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor

from rwkv_runtime.testing import small_architecture, write_random_weights

GOLDEN = Path(__file__).parents[2] / "golden" / "fla_rwkv7.safetensors"
LAYERS = 2
TOKENS = [(11 * i * i + 5 * i + 3) % 256 for i in range(48)]
CACHED = ("recurrent_state", "conv_state", "ffn_state")

#: As its configuration class writes them, without what only names files.
CONFIG: dict[str, Any] = {
    "a_low_rank_dim": 24,
    "attn": None,
    "attn_mode": "chunk",
    "decay_low_rank_dim": 32,
    "fuse_norm": False,
    "gate_low_rank_dim": 40,
    "head_dim": 64,
    "hidden_act": "sqrelu",
    "hidden_ratio": 4.0,
    "hidden_size": 128,
    "intermediate_size": None,
    "model_type": "rwkv7",
    "norm_bias": True,
    "norm_eps": 1e-05,
    "norm_first": True,
    "num_heads": 2,
    "num_hidden_layers": LAYERS,
    "tie_word_embeddings": False,
    "v_low_rank_dim": 16,
    "value_dim": [128, 128],
    "vocab_size": 256,
}

# What stands under which name, written out: (Hugging Face, official, transposed).
OUTSIDE = [
    ("model.embeddings.weight", "emb.weight", False),
    ("model.norm.weight", "ln_out.weight", False),
    ("model.norm.bias", "ln_out.bias", False),
    ("lm_head.weight", "head.weight", False),
]
LAYER = [
    *((f"{new}.{leaf}", f"{old}.{leaf}", False)
      for new, old in (("attn_norm", "ln1"), ("ffn_norm", "ln2"), ("attn.g_norm", "att.ln_x"))
      for leaf in ("weight", "bias")),
    *((f"attn.x_{x}", f"att.x_{x}", False) for x in "rwkvag"),
    *((f"attn.{name}", f"att.{name}", False) for name in ("k_k", "k_a", "r_k")),
    ("attn.r_proj.weight", "att.receptance.weight", False),
    ("attn.k_proj.weight", "att.key.weight", False),
    ("attn.v_proj.weight", "att.value.weight", False),
    ("attn.o_proj.weight", "att.output.weight", False),
    *((f"attn.{x}_lora.lora.0.weight", f"att.{x}1", True) for x in "wavg"),
    *((f"attn.{x}_lora.lora.2.weight", f"att.{x}2", True) for x in "wavg"),
    *((f"attn.{x}_lora.lora.2.bias", f"att.{x}0", False) for x in "wav"),
    ("ffn.x_k", "ffn.x_k", False),
    ("ffn.key.weight", "ffn.key.weight", False),
    ("ffn.value.weight", "ffn.value.weight", False),
]  # fmt: skip
FIRST = [("pre_norm.weight", "ln0.weight", False), ("pre_norm.bias", "ln0.bias", False)]

Tensors = dict[str, Tensor]


def in_their_form(tensors: Tensors, layers: int) -> Tensors:
    """The same weights under their names."""
    names = list(OUTSIDE)
    for layer in range(layers):
        of_layer = LAYER + (FIRST if layer == 0 else [])
        if layer == 0:
            of_layer = [row for row in of_layer if "v_lora" not in row[0]]
        names += [
            (f"model.layers.{layer}.{new}", f"blocks.{layer}.{old}", turned)
            for new, old, turned in of_layer
        ]
    unnamed = tensors.keys() - {old for _, old, _ in names}
    assert unnamed == set()
    theirs = {}
    for new, old, turned in names:
        tensor = tensors[old].t() if turned else tensors[old]
        theirs[new] = (tensor[None, None] if ".attn.x_" in new else tensor).contiguous()
    return theirs


def write_model(directory: Path) -> Path:
    """The directory that `GOLDEN` was recorded from."""
    ours = directory / "ours.safetensors"
    write_random_weights(ours, small_architecture(LAYERS), seed=7)
    path = directory / "theirs"
    path.mkdir()
    (path / "config.json").write_text(json.dumps(CONFIG))
    theirs = in_their_form(safetensors.torch.load_file(ours), LAYERS)
    safetensors.torch.save_file(theirs, path / "model.safetensors", {"format": "pt"})
    return path


def record() -> None:
    """What flash-linear-attention computes: the last token's logits, and its cache."""
    from fla.models.rwkv7 import RWKV7ForCausalLM  # type: ignore[import-not-found]
    from triton.runtime.autotuner import Autotuner  # type: ignore[import-not-found]

    # Without a GPU there is nothing to tune by: take each kernel's first configuration.
    Autotuner.do_bench = staticmethod(lambda *_args, **_named: [1.0, 1.0, 1.0])
    with tempfile.TemporaryDirectory() as scratch:
        model = RWKV7ForCausalLM.from_pretrained(write_model(Path(scratch))).eval().float()
    for block in model.model.layers:
        block.attn.mode = "fused_recurrent"
    with torch.no_grad():
        result = model(torch.tensor([TOKENS]), use_cache=True)
    found = {"logits": result.logits[0, -1].contiguous()}
    for layer in range(LAYERS):
        for name in CACHED:
            value = result.past_key_values[layer][name]
            whole = value[0] if isinstance(value, tuple | list) else value
            found[f"{layer}.{name}"] = whole.contiguous()
    safetensors.torch.save_file(found, GOLDEN)


if __name__ == "__main__":
    record()
