"""From C files to a library that is loaded.

The library lies in the user's cache directory under a digest of everything that made it: sources,
flags, compiler, processor. It appears by rename, so any number of processes may race, and ends with
a digest of itself: one that was cut short or damaged is made anew, never loaded. As it is code, it
is only loaded from a directory that belongs to this user and that nobody else can write to.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import platform
import shlex
import shutil
import signal
import stat
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import platformdirs

from statestore.errors import SettingsError

# Without the third the compiler would fuse what is not written fused, where it can.
FLAGS = ("-std=c11", "-O3", "-ffp-contract=off", "-fno-math-errno", "-fPIC", "-shared")
COMPILERS = ("cc", "gcc", "clang")
COMPILE_S = 120.0  # it takes one or two
LOOK_S = 0.05  # how often a compiler is asked whether it should be stopped
LEFT_S = 3600.0  # what is older than this, nobody is compiling
_DIGEST_BYTES = 32
_SCRATCH = ".compiling-"


@dataclass(frozen=True, slots=True)
class Sources:
    """C files that make one library, and how errors speak of it.

    Args:
        main: the file that is compiled.
        headers: the files that it includes, beside it.
        title: what it is for, at the beginning of a message.
        otherwise: what else the user may do, at the end of one.
    """

    main: Path
    headers: tuple[Path, ...]
    title: str
    otherwise: str


def load(
    sources: Sources,
    flags: tuple[str, ...] | None = None,
    cache_dir: Path | None = None,
    stop: threading.Event | None = None,
) -> ctypes.CDLL:
    """The loaded library; compiled first where it is not in the cache.

    Args:
        sources: what it is made of.
        flags: of the processor; by default those of this one.
        cache_dir: where libraries are kept; by default the user's cache directory.
        stop: ends a compiler that runs, once it is set.

    Raises:
        SettingsError: no C compiler, or it fails; or the directory is open to others.
    """
    command, folder = _command(sources, flags), _folder(sources, cache_dir)
    with _named(sources, folder):
        _check_private(sources, folder)
        path = _path(sources, command, folder)
        if not _is_whole(path):
            _compile(sources, command, path, stop or threading.Event())
        return ctypes.CDLL(str(path))


def load_compiled(sources: Sources, cache_dir: Path | None = None) -> ctypes.CDLL | None:
    """The loaded library for this processor, if it is in the cache.

    Raises:
        SettingsError: no C compiler whose library it could be; or the directory is open to others.
    """
    command, folder = _command(sources, None), _folder(sources, cache_dir)
    with _named(sources, folder):
        path = _path(sources, command, folder)
        if not _is_whole(path):
            return None
        _check_private(sources, folder)
        return ctypes.CDLL(str(path))


@contextmanager
def _named(sources: Sources, folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise SettingsError(
            f"{sources.title}: {folder} cannot be used for the compiled library ({error}); "
            f"name another place by XDG_CACHE_HOME, or {sources.otherwise}"
        ) from error


def processor_flags() -> tuple[str, ...]:
    """For all that this processor can do."""
    return ("-march=native",) if platform.machine() in ("x86_64", "AMD64") else ("-mcpu=native",)


def _folder(sources: Sources, cache_dir: Path | None) -> Path:
    with suppress(RuntimeError):  # there is no home directory; older releases give "~/.cache"
        folder = cache_dir or Path(platformdirs.user_cache_dir("rwkv-statestore")) / "native"
        if folder.is_absolute():  # the working directory is anybody's
            return folder
    raise SettingsError(
        f"{sources.title}: there is no home directory to keep the compiled library in; name a "
        f"place by XDG_CACHE_HOME, or {sources.otherwise}"
    )


def _command(sources: Sources, flags: tuple[str, ...] | None) -> list[str]:
    return [*_compiler(sources), *FLAGS, *(processor_flags() if flags is None else flags)]


def _path(sources: Sources, command: list[str], folder: Path) -> Path:
    return folder / f"{_digest(sources, command)}.so"


def _compiler(sources: Sources) -> list[str]:
    """The command of $CC, or the first that is found."""
    text = os.environ.get("CC", "")
    try:
        named = shlex.split(text)
    except ValueError as error:
        raise SettingsError(
            f"{sources.title}: $CC is {text!r}, which is no command ({error}); mend it, or "
            f"{sources.otherwise}"
        ) from error
    for command in [named] if named else [[name] for name in COMPILERS]:
        found = shutil.which(command[0])
        if found is not None:
            return [found, *command[1:]]
    wanted = f"{named[0]} ($CC)" if named else " or ".join(COMPILERS)
    raise SettingsError(
        f"{sources.title}: no C compiler, looked for {wanted}; install one (Debian, Ubuntu: "
        f"apt install gcc libc6-dev), or {sources.otherwise}"
    )


def _digest(sources: Sources, command: list[str]) -> str:
    """Of all that decides what the library is."""
    parts = [repr(command).encode(), _processor().encode()]
    parts += [path.read_bytes() for path in (sources.main, *sources.headers)]
    compiler = Path(command[0]).stat()
    parts.append(f"{compiler.st_size} {compiler.st_mtime_ns}".encode())
    digest = hashlib.sha256()
    for part in parts:
        digest.update(len(part).to_bytes(8, "little") + part)
    return digest.hexdigest()[:32]


def _processor() -> str:
    """What this processor can do, as far as the system says."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        lines = []
    named = [line for line in lines if line.startswith(("flags", "Features", "model name"))]
    return "\n".join([platform.machine(), *sorted(set(named))])


def _check_private(sources: Sources, folder: Path) -> None:
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    found = folder.stat()
    if found.st_uid != os.geteuid() or found.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        raise SettingsError(
            f"{sources.title}: {folder} belongs to somebody else or is open to others, and what "
            f"lies in it would be run: chown it and chmod 700 {folder}, or {sources.otherwise}"
        )


def _is_whole(path: Path) -> bool:
    """Whether it is there, and as it was written: to run what was cut short may end the process."""
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        return False
    return hashlib.sha256(content[:-_DIGEST_BYTES]).digest() == content[-_DIGEST_BYTES:]


def _compile(sources: Sources, command: list[str], path: Path, stop: threading.Event) -> None:
    _sweep(path.parent)
    with tempfile.TemporaryDirectory(prefix=_SCRATCH, dir=path.parent) as scratch:
        made = Path(scratch, path.name)
        _run(sources, [*command, str(sources.main), "-o", str(made), "-lm"], scratch, stop)
        # Where SIGCHLD is ignored, or others wait for any child, nobody knows how it ended.
        content = made.read_bytes() if made.exists() else b""
        if not content:
            raise SettingsError(
                f"{sources.title}: {command[0]} ended and left no library; {sources.otherwise}"
            )
        with made.open("ab") as file:
            file.write(hashlib.sha256(content).digest())  # loaders pass over it
            file.flush()
            os.fsync(file.fileno())
        made.replace(path)


def _sweep(folder: Path) -> None:
    """Remove what processes left that were killed while they compiled."""
    for left in folder.glob(f"{_SCRATCH}*"):
        with suppress(OSError):
            if left.stat().st_mtime < time.time() - LEFT_S:
                shutil.rmtree(left)


def _run(sources: Sources, command: list[str], scratch: str, stop: threading.Event) -> None:
    """Run a compiler, whose own files lie in `scratch`, and end it with all that it has begun."""
    with Path(scratch, "said").open("w+", encoding="utf-8", errors="replace") as said:
        compiler = subprocess.Popen(  # noqa: S603 - the compiler, with arguments of our own
            command,
            stdin=subprocess.DEVNULL,
            stdout=said,
            stderr=said,
            env={**os.environ, "TMPDIR": scratch},
            start_new_session=True,
        )
        try:
            _wait(sources, compiler, command[0], stop)
        finally:
            if compiler.returncode is None:
                with suppress(ProcessLookupError):
                    os.killpg(compiler.pid, signal.SIGKILL)
                compiler.wait()
        if compiler.returncode:
            said.seek(0)
            message = said.readline().strip() or "no message"
            raise SettingsError(
                f"{sources.title}: {command[0]} ended with {compiler.returncode}: {message}; "
                "install a complete C compiler (Debian, Ubuntu: apt install gcc libc6-dev), or "
                f"{sources.otherwise}"
            )


def _wait(
    sources: Sources, compiler: subprocess.Popen[bytes], name: str, stop: threading.Event
) -> None:
    for _ in range(round(COMPILE_S / LOOK_S)):
        with suppress(subprocess.TimeoutExpired):
            compiler.wait(LOOK_S)
            return
        if stop.is_set():
            raise SettingsError(f"{sources.title}: {name} was stopped, as the program ends")
    raise SettingsError(
        f"{sources.title}: {name} did not end within {COMPILE_S:.0f} s; {sources.otherwise}"
    )
