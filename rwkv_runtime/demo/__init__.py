"""The shipped demo model: its corpus, training, measurement and weights. See MODEL_CARD.md."""

from pathlib import Path

MODEL_PATH = Path(__file__).with_name("model.safetensors")
"""The weights, an ordinary RWKV-7 file."""
