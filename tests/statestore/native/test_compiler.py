"""C files become libraries: once, whole, by whoever comes first, and never from others' hands."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import platformdirs
import pytest

from statestore.errors import SettingsError
from statestore.native import Sources, compiler, load, load_compiled

ANSWER = '#include "answer.h"\nint answer(void) { return ANSWER; }\n'


@pytest.fixture
def sources(tmp_path: Path) -> Sources:
    return written(tmp_path / "sources")


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return tmp_path / "cache"


def written(folder: Path, answer: str = "41 + 1") -> Sources:
    folder.mkdir(exist_ok=True)
    main, header = folder / "answer.c", folder / "answer.h"
    main.write_text(ANSWER)
    header.write_text(f"#define ANSWER {answer}\n")
    return Sources(main, (header,), title="the answer", otherwise="guess")


def only(cache: Path) -> Path:
    (path,) = cache.iterdir()
    assert path.suffix == ".so"
    return path


def test_a_library_is_compiled_once(sources: Sources, cache: Path) -> None:
    assert load_compiled(sources, cache) is None
    assert load(sources, cache_dir=cache).answer() == 42
    first = only(cache).stat()
    assert first.st_mode & 0o022 == 0
    found = load_compiled(sources, cache)
    assert found is not None
    assert found.answer() == load(sources, cache_dir=cache).answer() == 42
    assert only(cache).stat().st_mtime_ns == first.st_mtime_ns


def test_what_it_was_made_of_is_in_its_name(
    sources: Sources, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    load(sources, cache_dir=cache)
    load(sources, flags=("-DANOTHER",), cache_dir=cache)
    assert load(written(tmp_path / "sources", "43"), cache_dir=cache).answer() == 43
    assert len(list(cache.iterdir())) == 3
    monkeypatch.setattr(compiler, "_processor", lambda: "another one")
    assert load_compiled(sources, cache) is None


def replaced(path: Path, content: bytes) -> None:
    """By another file: this process runs the first."""
    path.unlink()
    path.write_bytes(content)


@pytest.mark.parametrize("kept", [0, 1, 100, 5000, -1])
def test_a_library_that_was_cut_short_is_never_loaded(
    sources: Sources, cache: Path, kept: int
) -> None:
    load(sources, flags=(), cache_dir=cache)
    path = only(cache)
    whole = path.read_bytes()
    replaced(path, whole[:kept])
    assert load(sources, flags=(), cache_dir=cache).answer() == 42
    assert only(cache).read_bytes() == whole


def test_a_damaged_library_is_never_loaded(sources: Sources, cache: Path) -> None:
    load(sources, cache_dir=cache)
    path = only(cache)
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    replaced(path, content)
    assert load_compiled(sources, cache) is None
    assert load(sources, cache_dir=cache).answer() == 42


@pytest.mark.parametrize(
    ("command", "what"),
    [
        ("no-such-compiler", r"the answer: .*no-such-compiler \(\$CC\).*apt install gcc.*guess"),
        ("'gcc", r"the answer: \$CC is .* no command.*guess"),
        ("false", "ended with 1: no message.*or guess"),
        ("gcc --no-such-flag", "no-such-flag.*or guess"),
        ("true", "ended and left no library; guess"),
    ],
)
def test_without_a_compiler_the_remedy_is_named(
    sources: Sources, cache: Path, monkeypatch: pytest.MonkeyPatch, command: str, what: str
) -> None:
    monkeypatch.setenv("CC", command)
    with pytest.raises(SettingsError, match=what):
        load(sources, cache_dir=cache)
    assert not list(cache.parent.glob("cache/*"))


def test_a_compiler_that_fails_unseen_leaves_nothing_behind(
    sources: Sources, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    script, mended = tmp_path / "a-cc", tmp_path / "mended"
    script.write_text(f'#!/bin/sh\n[ -e {mended} ] && exec cc "$@"\nexit 0\n')
    script.chmod(0o700)
    monkeypatch.setenv("CC", str(script))
    with pytest.raises(SettingsError, match="left no library"):
        load(sources, cache_dir=cache)
    mended.touch()
    assert load(sources, cache_dir=cache).answer() == 42


def test_code_that_others_can_write_is_not_loaded(sources: Sources, cache: Path) -> None:
    load(sources, cache_dir=cache)
    cache.chmod(0o777)
    for ask in (lambda: load(sources, cache_dir=cache), lambda: load_compiled(sources, cache)):
        with pytest.raises(SettingsError, match=r"the answer: .*chmod 700.*guess"):
            ask()


def test_a_place_that_cannot_be_used_is_named(sources: Sources, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for folder in (tmp_path / "file", Path("/proc/no-such-place")):
        with pytest.raises(SettingsError, match=r"the answer: .*XDG_CACHE_HOME.*guess"):
            load(sources, cache_dir=folder)


def test_without_a_home_nothing_is_looked_for_in_the_working_directory(
    sources: Sources, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(platformdirs, "user_cache_dir", lambda _: "~/.cache/rwkv-statestore")
    with pytest.raises(SettingsError, match=r"the answer: .*XDG_CACHE_HOME.*guess"):
        load(sources)
    assert not list(tmp_path.glob("~*"))


RACING = """
import sys
from pathlib import Path
from statestore.native import Sources, load
main = Path(sys.argv[1])
sources = Sources(main, (main.with_suffix(".h"),), title="the answer", otherwise="guess")
print("ready", flush=True)
sys.stdin.readline()
sys.exit(load(sources, cache_dir=Path(sys.argv[2])).answer() - 42)
"""


def test_processes_may_compile_at_once(sources: Sources, cache: Path) -> None:
    command = [sys.executable, "-c", RACING, str(sources.main), str(cache)]
    pipe = subprocess.PIPE
    racers = [subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True) for _ in range(3)]
    for racer in racers:
        assert racer.stdout is not None
        assert racer.stdout.readline() == "ready\n"
    for racer in racers:
        assert racer.stdin is not None
        racer.stdin.write("\n")
        racer.stdin.flush()
    for racer in racers:
        racer.communicate(timeout=300)
        assert racer.returncode == 0
    assert only(cache)


HANGING = """#!/bin/sh
exec 3> {fifo}
sleep 1000 &
echo begun >&3
wait
"""


def test_a_compiler_can_be_stopped_with_all_that_it_has_begun(
    sources: Sources, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fifo, script = tmp_path / "fifo", tmp_path / "hanging-cc"
    os.mkfifo(fifo)
    script.write_text(HANGING.format(fifo=fifo))
    script.chmod(0o700)
    monkeypatch.setenv("CC", str(script))
    stop, said = threading.Event(), list[str]()

    def make() -> None:
        with pytest.raises(SettingsError) as raised:
            load(sources, cache_dir=cache, stop=stop)
        said.append(str(raised.value))

    thread = threading.Thread(target=make)
    thread.start()
    with fifo.open() as pipe:
        assert pipe.readline() == "begun\n"
        stop.set()
        assert pipe.read() == ""  # nobody has it open any more
    thread.join(60)
    assert "was stopped" in said[0]
    assert not list(cache.iterdir())


def test_a_compiler_that_hangs_is_ended(
    sources: Sources, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(compiler, "COMPILE_S", 0.2)
    script = tmp_path / "hanging-cc"
    script.write_text("#!/bin/sh\nsleep 1000\n")
    script.chmod(0o700)
    monkeypatch.setenv("CC", str(script))
    with pytest.raises(SettingsError, match=r"the answer: .*did not end within.*guess"):
        load(sources, cache_dir=cache)
    assert not list(cache.iterdir())


def test_what_was_left_by_who_was_killed_is_removed_in_time(sources: Sources, cache: Path) -> None:
    long_ago = time.time() - 2 * compiler.LEFT_S
    for name, at in ((".compiling-old", long_ago), (".compiling-new", None)):
        (cache / name).mkdir(mode=0o700, parents=True)
        (cache / name / "answer.so").touch()
        os.utime(cache / name, None if at is None else (at, at))
    cache.chmod(0o700)
    load(sources, cache_dir=cache)
    assert {path.name for path in cache.iterdir() if path.suffix != ".so"} == {".compiling-new"}
