"""The README's Python, run with the model that ships with the package in the place of one's own."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch

from rwkv_runtime import tokenizer_for
from rwkv_runtime.demo import MODEL_PATH
from rwkv_runtime.engines import load_engine
from tests.checkout import ROOT

SECTION = (ROOT / "README.md").read_text("utf-8").partition("### From Python")[2]
BLOCKS = re.findall(r"```python\n(.*?)```", SECTION.partition("\n## ")[0], re.DOTALL)
DOCUMENT = "Carla is at home in Brno. Linus works as a plumber.\n" * 3


def tuned_file(path: Path) -> Path:
    """A state that was tuned for the demo's model, to nothing in particular."""
    sizes = dict(load_engine(MODEL_PATH).fingerprint.shapes)
    shape = (sizes["heads"], sizes["head_size"], sizes["head_size"])
    layers = range(sizes["layers"])
    torch.save({f"blocks.{i}.att.time_state": torch.full(shape, 0.01) for i in layers}, path)
    return path


@pytest.mark.parametrize("block", BLOCKS, ids=["first", "more"])
def test_python_of_the_readme_runs(
    block: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for named, real in {
        "model.pth": MODEL_PATH,
        "tuned.pth": tuned_file(tmp_path / "tuned.pth"),
        "/path/to/dir": tmp_path / "dir",
        "/var/lib/states": tmp_path / "states",
    }.items():
        block = block.replace(named, str(real))
    tokenizer = tokenizer_for(256)
    assert tokenizer is not None
    names = {
        "document": DOCUMENT,
        "document_tokens": tokenizer.encode(DOCUMENT),
        "question_tokens": tokenizer.encode("\nQ: Where is Carla?\nA:"),
    }
    exec(block, names)
    printed = capsys.readouterr().out
    assert printed, "it shows an answer, or a text"
    assert str(tmp_path) in block
