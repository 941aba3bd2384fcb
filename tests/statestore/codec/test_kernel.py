"""Compiled C and NumPy: the same bytes, whoever compiles; and a program that never waits for it."""

from __future__ import annotations

import ctypes
import itertools
import logging
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from statestore.codec import decode, kernel, planes
from statestore.config import KERNEL_VARIABLE
from statestore.native import Sources, load
from statestore.native.behind import Behind
from tests.statestore.codec.codec_samples import assert_same, blob_of, small_state

HANG_S = 120.0
GUARD = 64  # bytes around what is written
CPU = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
BUILDS: dict[str, tuple[str, ...] | None] = {"native": None, "plain": (), "unoptimised": ("-O0",)}
BUILDS |= {"avx2": ("-march=x86-64-v3",)} if " avx2" in CPU else {}
BUILDS |= {"avx512": ("-march=x86-64-v4",)} if " avx512vl" in CPU else {}
COMPILERS = [name for name in ("gcc", "clang") if shutil.which(name)]
Array = NDArray[Any]


@pytest.fixture(scope="module", params=[(c, b) for c in COMPILERS for b in BUILDS], ids="-".join)
def made(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    """The library, by every compiler that is here, for several processors."""
    compiler, build = request.param
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CC", compiler)
        return load(kernel.SOURCES, BUILDS[build], tmp_path_factory.mktemp("cache"))


def placed(content: bytes, size: int, start: int) -> Array:
    """A copy of the words of `size` bytes in `content`, `start` bytes past a multiple of 64."""
    room = np.empty(len(content) + 128, np.uint8)
    begin = -room.ctypes.data % 64 + start
    room[begin : begin + len(content)] = np.frombuffer(content, np.uint8)
    return room[begin : begin + len(content)].view(planes.WORD[size])


def room_for(sizes: list[int], size: int, start: int) -> tuple[Array, list[Array]]:
    """Memory whose content is known, and words in it to write to; a guard around each."""
    room = np.full(sum(sizes) * size + (len(sizes) + 1) * (GUARD + start), 0xA5, np.uint8)
    views, reached = [], 0
    for count in sizes:
        reached += GUARD + start
        views.append(room[reached : reached + count * size].view(planes.WORD[size]))
        reached += count * size
    return room, views


def split(one: kernel.Planes, words: Array, q: int, start: int) -> tuple[bytes, list[Array]]:
    """All that is there after splitting `words`, and the planes."""
    lanes, size = planes.LANES[words.itemsize], words.itemsize
    room, (low, top) = room_for([(lanes - 1) * q, q], size, start)
    low = low.reshape(lanes - 1, q)
    one.split[size](words, low, top, np.empty((2, q), words.dtype))
    return room.tobytes(), [low, top]


def merge(one: kernel.Planes, low: Array, top: Array, start: int) -> tuple[bytes, Array]:
    """All that is there after merging planes, and the words."""
    room, (out,) = room_for([low.size + top.size], top.itemsize, start)
    one.merge[top.itemsize](low, top, out, np.empty(top.size, top.dtype))
    return room.tobytes(), out


CONTENTS: dict[str, Callable[[int], bytes]] = {
    "any": np.random.default_rng(0).bytes,
    "ones": lambda count: b"\xff" * count,
    "edges": lambda count: (b"\x80\x01\x7f\x00\xfe" * (count // 5 + 1))[:count],
}


@pytest.mark.parametrize("size", [4, 2])
def test_the_bytes_are_numpys(made: ctypes.CDLL, size: int) -> None:
    """Of words at any place; merged also from planes as they come."""
    ours, lanes = kernel.native(made), planes.LANES[size]
    assert ours is not None
    for (q, content), start in zip(
        itertools.product([*range(71), 509, 4099], CONTENTS.values()), itertools.cycle(range(7))
    ):
        words = placed(content(lanes * q * size), size, start)
        expected, _ = split(kernel.NUMPY, words, q, start)
        found, (low, top) = split(ours, words, q, start)
        assert found == expected
        assert merge(ours, low, top, start)[1].tobytes() == words.tobytes()
        low = placed(content((lanes - 1) * q * size), size, start).reshape(lanes - 1, q)
        top = placed(content(q * size), size, 6 - start)
        assert merge(ours, low, top, start)[0] == merge(kernel.NUMPY, low, top, start)[0]


def using(monkeypatch: pytest.MonkeyPatch, wanted: kernel.Planes) -> None:
    monkeypatch.setattr(kernel, "_NATIVE", Behind(lambda: wanted, lambda _: wanted))


def test_a_container_is_the_same_and_read_by_both(monkeypatch: pytest.MonkeyPatch) -> None:
    compiled, blobs = kernel.settled(HANG_S), []
    assert compiled.name == "native"
    for one in (compiled, kernel.NUMPY):
        using(monkeypatch, one)
        blobs.append(blob_of(small_state(), "lossless"))
    assert blobs[0] == blobs[1]
    for one in (compiled, kernel.NUMPY):
        using(monkeypatch, one)
        assert_same(decode(blobs[0])[1], small_state())


@pytest.mark.parametrize("size", [4, 2])
def test_what_does_not_fit_never_reaches_c(size: int) -> None:
    compiled, word, lanes, q = kernel.settled(HANG_S), planes.WORD[size], planes.LANES[size], 8
    assert compiled.name == "native"
    arrays = {
        "words": np.zeros(lanes * q, word),
        "low": np.zeros((lanes - 1) * q, word),
        "top": np.zeros(q, word),
    }
    wrong: dict[str, Callable[[Array], Array]] = {
        "shorter": lambda array: array[:-1],
        "longer": lambda array: np.concatenate([array, array[:1]]),
        "with gaps": lambda array: np.repeat(array, 2)[::2],
        "of bytes": lambda array: array.view(np.uint8)[: array.size],
    }
    scratch = np.zeros((2, q), word)
    for name, change in ((name, change) for name in arrays for change in wrong.values()):
        a = arrays | {name: change(arrays[name])}
        with pytest.raises(ValueError, match="do not fit"):
            compiled.split[size](a["words"], a["low"], a["top"], scratch)
        with pytest.raises(ValueError, match="do not fit"):
            compiled.merge[size](a["low"], a["top"], a["words"], scratch[0])
    arrays["words"].flags.writeable = False
    with pytest.raises(ValueError, match="do not fit"):
        compiled.merge[size](arrays["low"], arrays["top"], arrays["words"], scratch[0])
    arrays["low"].flags.writeable = False
    with pytest.raises(ValueError, match="do not fit"):
        compiled.split[size](arrays["words"], arrays["low"], arrays["top"], scratch)


def changed(tmp_path: Path, old: str, new: str) -> Sources:
    text = kernel.SOURCES.main.read_text(encoding="utf-8")
    assert old in text
    main = tmp_path / "changed.c"
    main.write_text(text.replace(old, new))
    return replace(kernel.SOURCES, main=main)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("rest >> 16 << 24", "rest >> 15 << 24"),  # split32
        ("^ p2 >> 8;", "^ p2 >> 9;"),  # merge32
        ("w0 >> 8);", "w0 >> 7);"),  # split16
        ("^ tops << 8);\n        out", "^ tops << 7);\n        out"),  # merge16
        ("i < q; i++) {\n        uint32_t p0", "i < q - q % 2; i++) {\n        uint32_t p0"),
        ("i < q; i++) {\n        uint16_t p ", "i <= q; i++) {\n        uint16_t p "),
    ],
)
def test_a_library_that_does_otherwise_is_not_used(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    old: str,
    new: str,
) -> None:
    sources = changed(tmp_path, old, new)
    assert kernel.native(load(sources, cache_dir=tmp_path / "cache")) is None
    monkeypatch.setattr(kernel, "SOURCES", sources)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert kernel._make(threading.Event()) is None
    assert "does not give NumPy's bytes" in caplog.text
    assert kernel._find() is None


def test_without_a_compiler_numpy_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("CC", "no-such-compiler")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(kernel, "_NATIVE", Behind(kernel._find, kernel._make))
    with caplog.at_level(logging.INFO):
        assert kernel.settled(HANG_S) is kernel.NUMPY
    assert caplog.text.count("no-such-compiler ($CC)") == 1
    assert_same(decode(blob_of(small_state(), "lossless"))[1], small_state())


@pytest.mark.parametrize(("value", "said"), [("numpy", ""), ("gcc", "gcc is not known")])
def test_the_environment_may_choose_numpy(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    value: str,
    said: str,
) -> None:
    monkeypatch.setenv(KERNEL_VARIABLE, value)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(kernel, "_NATIVE", Behind(kernel._find, kernel._make))
    assert kernel.current() is kernel.settled(HANG_S) is kernel.NUMPY
    assert said in caplog.text
    assert not list(tmp_path.iterdir())


def test_what_nobody_thought_of_stops_no_request(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(kernel, "native", lambda _: 1 // 0)
    monkeypatch.setattr(kernel, "_NATIVE", Behind(kernel._find, kernel._make))
    assert kernel.settled(HANG_S) is kernel.NUMPY
    assert "ZeroDivisionError" in caplog.text


PROGRAM = """
import sys
from statestore.codec import decode, kernel
from tests.statestore.codec.codec_samples import assert_same, blob_of, small_state
print(kernel.current().name)
assert_same(decode(blob_of(small_state(), "lossless"))[1], small_state())
"""


def run(cache: Path | str, **environ: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM],
        env={**os.environ, "XDG_CACHE_HOME": str(cache), **environ},
        capture_output=True,
        text=True,
        timeout=HANG_S,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


def test_programs_that_run_shortly_get_their_library(tmp_path: Path) -> None:
    """The first compiles beside its work and as it ends, as long as a compiler may take then."""
    found = ""
    for _ in range(20):  # a busy machine may not compile within the time that an end waits
        found = run(tmp_path)
        if found == "native\n":
            break
        assert found == "numpy\n"
    assert found == "native\n"
    assert [path.suffix for path in tmp_path.glob("rwkv-statestore/native/*")] == [".so"]


def test_a_place_that_cannot_be_used_stops_nobody() -> None:
    assert run("/proc/no-such-place") == "numpy\n"


def test_a_compiler_that_hangs_stops_nobody(tmp_path: Path) -> None:
    """Nor does it outlive the program."""
    script, mark = tmp_path / "hanging-cc", tmp_path / "group"
    script.write_text(f"#!/bin/sh\necho $$ > {mark}\nexec sleep 1000\n")
    script.chmod(0o700)
    assert run(tmp_path / "cache", CC=str(script)) == "numpy\n"
    if mark.exists():  # else it was stopped before it had begun
        with pytest.raises(ProcessLookupError):
            os.kill(int(mark.read_text()), 0)
    assert not list((tmp_path / "cache").glob("rwkv-statestore/native/*"))
