"""The README's commands for a running server, run as they stand there."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from rwkv_runtime.demo.corpus import Document
from tests.checkout import ROOT
from tests.server.servers import Server

README = ROOT / "README.md"
ADDRESS = "http://127.0.0.1:8000"


def test_curl_as_the_readme_shows(server: Server, text: Document, tmp_path: Path) -> None:
    if shutil.which("curl") is None:
        pytest.skip("not run: no curl here")
    section = README.read_text("utf-8").partition("### Over HTTP")[2].partition("\n### ")[0]
    commands = re.findall(r"```sh\n(.*?)```", section, re.DOTALL)[0]
    assert commands.count(ADDRESS) == 4
    (tmp_path / "report.txt").write_text(text.text, encoding="utf-8")
    script = commands.replace(ADDRESS, server.url).replace("\ncurl", "\necho\ncurl")
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", script],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    answer, listed, deleted = (json.loads(line) for line in done.stdout.split("\n") if line)
    question = next(each for each in text.questions if "Carla" in each.text)
    assert question.text in commands
    assert answer["choices"][0]["message"]["content"] == question.answer
    assert "report" in [document["name"] for document in listed["data"]]
    assert deleted["deleted"]
