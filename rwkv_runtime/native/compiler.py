"""From the C files beside this one to a library that is loaded, once for each kind of processor.

The library lies in the user's cache directory under a digest of everything that made it: sources,
flags, compiler, processor. It appears by rename, so any number of processes may race. As it is
code, it is only loaded from a directory that belongs to this user and that nobody else can write
to.

Nothing of this decides bits: the sources do. The one instruction that they rely on beyond IEEE 754
is compared with its description before the library is used (`pairs`).
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import platform
import shlex
import shutil
import stat
import subprocess
import tempfile
from pathlib import Path

import platformdirs

from rwkv_runtime.native.pairs import as_described
from statestore.errors import SettingsError

SOURCES = Path(__file__).parent
MAIN = "rwkv7.c"
HEADERS = tuple(sorted(path.name for path in SOURCES.glob("*.h")))
# Without the third the compiler would fuse what is not written fused, where it can.
FLAGS = ("-std=c11", "-O3", "-ffp-contract=off", "-fno-math-errno", "-fPIC", "-shared")
# Where the processor's products of bf16 are not as described, they are made of others.
NO_PAIRS = ("-mno-avx512bf16",)
COMPILERS = ("cc", "gcc", "clang")
COMPILE_S = 120.0  # it takes one or two


def library(cache_dir: Path | None = None, flags: tuple[str, ...] | None = None) -> ctypes.CDLL:
    """The loaded library; compiled first where it is not in the cache.

    Args:
        cache_dir: where libraries are kept; by default the user's cache directory.
        flags: of the processor, for tests; by default those of this one.

    Raises:
        SettingsError: no C compiler, or it fails; or the directory is open to others.
    """
    chosen = _processor_flags() if flags is None else flags
    made = _library(cache_dir, chosen)
    return made if as_described(made) else _library(cache_dir, (*chosen, *NO_PAIRS))


def _library(cache_dir: Path | None, flags: tuple[str, ...]) -> ctypes.CDLL:
    command = [*_compiler(), *FLAGS, *flags]
    folder = cache_dir or Path(platformdirs.user_cache_dir("rwkv-statestore")) / "native"
    try:
        _check_private(folder)
        path = folder / f"{_digest(command)}.so"
        if not path.exists():
            _compile(command, path)
        return ctypes.CDLL(str(path))
    except OSError as error:
        raise SettingsError(
            f"kernel native: {folder} cannot be used for the compiled library ({error}); "
            "name another place by XDG_CACHE_HOME, or take --kernel torch"
        ) from error


def _compiler() -> list[str]:
    """The command of $CC, or the first that is found."""
    named = shlex.split(os.environ.get("CC", ""))
    for command in [named] if named else [[name] for name in COMPILERS]:
        found = shutil.which(command[0])
        if found is not None:
            return [found, *command[1:]]
    wanted = f"{named[0]} ($CC)" if named else " or ".join(COMPILERS)
    raise SettingsError(
        f"kernel native: no C compiler, looked for {wanted}; install one (Debian, Ubuntu: "
        "apt install gcc libc6-dev), or take --kernel torch"
    )


def _processor_flags() -> tuple[str, ...]:
    return ("-march=native",) if platform.machine() in ("x86_64", "AMD64") else ("-mcpu=native",)


def _digest(command: list[str]) -> str:
    """Of all that decides what the library is."""
    parts = [repr(command).encode(), _processor().encode()]
    parts += [(SOURCES / name).read_bytes() for name in (MAIN, *HEADERS)]
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


def _check_private(folder: Path) -> None:
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    found = folder.stat()
    if found.st_uid != os.geteuid() or found.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        raise SettingsError(
            f"kernel native: {folder} belongs to somebody else or is open to others, and what "
            f"lies in it would be run: chown it and chmod 700 {folder}, or take --kernel torch"
        )


def _compile(command: list[str], path: Path) -> None:
    with tempfile.TemporaryDirectory(prefix=".compiling-", dir=path.parent) as scratch:
        made = Path(scratch, path.name)
        try:
            done = subprocess.run(  # noqa: S603 - the compiler, with arguments of our own
                [*command, str(SOURCES / MAIN), "-o", str(made), "-lm"],
                capture_output=True,
                text=True,
                timeout=COMPILE_S,
                check=False,
            )
        except subprocess.TimeoutExpired as error:
            raise SettingsError(
                f"kernel native: {command[0]} did not end within {COMPILE_S:.0f} s; "
                "take --kernel torch"
            ) from error
        if done.returncode:
            said = done.stderr.strip().splitlines()
            raise SettingsError(
                f"kernel native: {command[0]} ended with {done.returncode}: "
                f"{said[0] if said else 'no message'}; install a complete C compiler "
                "(Debian, Ubuntu: apt install gcc libc6-dev), or take --kernel torch"
            )
        made.replace(path)
