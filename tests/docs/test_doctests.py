"""Examples in docstrings, run; and numbers that each release changes are this one's."""

from __future__ import annotations

import doctest
import re
from importlib import import_module

import pytest

from tests.checkout import ROOT

MODULES = [
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
    for package in ("statestore", "rwkv_runtime")
    for path in sorted((ROOT / package).rglob("*.py"))
    if ">>> " in path.read_text("utf-8")
]


@pytest.mark.parametrize("name", MODULES)
def test_examples_in_docstrings(name: str) -> None:
    assert doctest.testmod(import_module(name)).failed == 0


def test_there_are_examples() -> None:
    assert len(MODULES) > 5


def test_revisions_of_the_tables_are_the_newest() -> None:
    newest = max(path.name[:4] for path in (ROOT / "migrations" / "versions").glob("[0-9]*.py"))
    said = {
        "README.md": r"upgraded from nothing to (\d{4})",
        "CHANGELOG.md": r"The catalog's tables are at revision (\d{4})",
    }
    for name, pattern in said.items():
        assert re.findall(pattern, (ROOT / name).read_text("utf-8")) == [newest], name
