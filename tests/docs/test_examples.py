"""examples/, run as their first lines say: once with an empty store, and once more."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx

from rwkv_runtime.demo.corpus import demo_document
from statestore import open_store
from tests.checkout import ROOT
from tests.places.redis_servers import free_port
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


@contextmanager
def serving(name: str, directory: Path) -> Iterator[str]:
    """Two workers with the application of an example; its address."""
    port = str(free_port())
    command = ["uvicorn", "--app-dir", str(EXAMPLES), "--workers", "2", "--port", port]
    application = f"{name.removesuffix('.py')}:app"
    with (directory / "log").open("w+") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", *command, application], cwd=directory, stdout=log, stderr=log
        )
        try:
            yield f"http://127.0.0.1:{port}"
        finally:
            process.terminate()
            process.wait(60)


def test_a_backends_workers_share_what_one_has_read(tmp_path: Path) -> None:
    asked = demo_document().questions[:6]
    with serving("backend.py", tmp_path) as url:
        retry = httpx.HTTPTransport(retries=12)  # 0.5 s, 1 s, 2 s ...: until it listens
        with httpx.Client(transport=retry, timeout=60) as client:
            for question in asked:
                answer = client.get(f"{url}/ask", params={"question": question.text})
                assert answer.text.strip() == question.answer
    assert "Traceback" not in (tmp_path / "log").read_text()
    with open_store(str(tmp_path / "states")) as store:
        hits = [entry.hits for entry in store.list()]
    assert sum(hits) >= len(asked) - 1, "the document was read more than once"


def test_every_example_is_run_here() -> None:
    source = Path(__file__).read_text("utf-8")
    assert all(f'"{path.name}"' in source for path in EXAMPLES.glob("*.py"))
