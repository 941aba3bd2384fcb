"""What a user installs: a wheel with its migrations, that opens a store without the checkout."""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from tests.checkout import ROOT


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    target = tmp_path_factory.mktemp("wheel")
    build = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation"]
    subprocess.run([*build, "--wheel-dir", str(target), str(ROOT)], check=True, capture_output=True)
    return next(target.glob("*.whl"))


def test_the_wheel_holds_migrations_model_and_types(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    assert "statestore/_migrations/env.py" in names
    assert any(name.startswith("statestore/_migrations/versions/0001") for name in names)
    assert "statestore/py.typed" in names
    assert "rwkv_runtime/py.typed" in names
    assert any(name.startswith("rwkv_runtime/demo/model.") for name in names)
    sources = {
        path.relative_to(ROOT).as_posix()
        for package in ("rwkv_runtime", "statestore")
        for path in (ROOT / package).rglob("*.[ch]")
    }
    of_engine = {f"rwkv_runtime/native/{name}" for name in ("rwkv7.c", "lanes.h")}
    assert {*of_engine, "statestore/codec/planes.c"} < sources
    assert sources <= set(names)
    assert not any(name.startswith(("tests/", "benchmarks/", "migrations/")) for name in names)


def test_a_store_opens_from_the_wheel_alone(wheel: Path, tmp_path: Path) -> None:
    installed = tmp_path / "site"
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(installed)
    code = (
        "import statestore\n"
        f"assert statestore.__file__.startswith({str(installed)!r})\n"
        f"print(statestore.open_store({str(tmp_path / 'store')!r}).usage().entries)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(installed)},
        check=False,
    )
    assert done.stdout == "0\n", done.stderr
