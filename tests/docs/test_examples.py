"""examples/, run as their first lines say: once with an empty store, and once more."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from rwkv_runtime.demo.corpus import demo_document
from tests.checkout import ROOT
from tests.runtime.weights.old_versions import write_old_weights

EXAMPLES = ROOT / "examples"


def run(name: str, directory: Path, *arguments: str, without_torch: bool = False) -> str:
    code = "import sys; sys.modules['torch'] = None; " if without_torch else "import sys; "
    code += (
        "import runpy; sys.argv = sys.argv[1:]; runpy.run_path(sys.argv[0], run_name='__main__')"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(EXAMPLES / name), *arguments],
        cwd=directory, capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_by_hand_needs_no_torch(tmp_path: Path) -> None:
    printed = [run("by_hand.py", tmp_path, "./states", without_torch=True) for _ in range(2)]
    assert printed == [
        "0 of 1193 tokens came from the store\n",
        "1170 of 1193 tokens came from the store\n",
    ]


def test_a_loop_of_ones_own_writes_the_same_from_the_store(tmp_path: Path) -> None:
    write_old_weights(tmp_path / "six.pth", "6")
    (tmp_path / "report.txt").write_text("The cobalt mill stood by the river. " * 30)
    arguments = ("six.pth", "report.txt", "Where did the mill stand?")
    cold, warm = (run("own_loop.py", tmp_path, *arguments).split("\n", 1) for _ in range(2))
    assert cold[0].startswith("0 tokens from the store, ")
    assert warm[0].startswith("1080 tokens from the store, ")
    assert cold[1] == warm[1]


def test_many_requests_are_answered(tmp_path: Path) -> None:
    asked = demo_document().questions[:4]
    expected = [f"{question.text} {question.answer}" for question in asked]
    assert run("many_requests.py", tmp_path).splitlines() == expected


def test_every_example_is_run_here() -> None:
    source = Path(__file__).read_text("utf-8")
    assert all(f'"{path.name}"' in source for path in EXAMPLES.glob("*.py"))
