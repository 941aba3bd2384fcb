"""Processes of one store, forked from a process that has loaded the libraries and opened nothing:
hundreds of them cost little.

A module of workers is run by `run_module` as ``python -m MODULE VERB PLACE SEED COUNT``, and ends
with `end_with`: its exit status is 0 if each process did what it should.
"""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Mapping
from functools import partial

from tests.checkout import ROOT

Verb = Callable[[str, int, int], bool]  # place, seed, count


def command(module: str, *arguments: object) -> list[str]:
    return [sys.executable, "-m", module, *map(str, arguments)]


def run_module(module: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    """Start a module of workers as a process and wait for it."""
    return subprocess.run(
        command(module, *arguments),
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )


def end_with(verbs: Mapping[str, Verb]) -> None:
    """What the command line asks for; then this process ends."""
    _, verb, where, seed, count = sys.argv
    sys.exit(0 if verbs[verb](where, int(seed), int(count)) else 1)


def fork(work: Callable[[], None]) -> int:
    """Run `work` in a child; its process id. An exception there ends it with status 1."""
    child = os.fork()
    if child:
        return child
    status = 1
    try:
        work()
        status = 0
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(status)


def succeeded(children: list[int]) -> bool:
    ends = [os.waitpid(child, 0)[1] for child in children]  # waits for every one
    return all(end == 0 for end in ends)


def killed(child: int) -> bool:
    """End it; ``False`` where an exception had ended it before."""
    os.kill(child, signal.SIGKILL)
    return os.waitpid(child, 0)[1] == signal.SIGKILL


def side_by_side(work: Callable[[int], None], count: int) -> bool:
    """`count` children, each with its number."""
    return succeeded([fork(partial(work, number)) for number in range(count)])


def at_once(work: Callable[[int], None], count: int) -> bool:
    """As `side_by_side`; all of them begin at the same moment."""
    read_end, write_end = os.pipe()

    def contend(number: int) -> None:
        os.close(write_end)
        os.read(read_end, 1)  # returns when the parent closes its end
        work(number)

    children = [fork(partial(contend, number)) for number in range(count)]
    os.close(read_end)
    os.close(write_end)
    return succeeded(children)


def killed_in_pairs(
    work: Callable[[random.Random, Callable[[], object]], None],
    seed: int,
    count: int,
    longest_s: float,
    *,
    while_opening: bool = False,
) -> bool:
    """`count` times: two children work until SIGKILL ends them at a random moment, at most
    `longest_s` after both have called what they are given.

    With `while_opening` every fifth moment is counted from their start. ``False`` where an
    exception ended one before.
    """
    dice = random.Random(seed)
    for attempt in range(count):
        read_end, write_end = os.pipe()
        ready = partial(os.write, write_end, b"!")
        seeds = dice.sample(range(1 << 30), 2)
        children = [fork(partial(work, random.Random(number), ready)) for number in seeds]
        os.close(write_end)
        if attempt % 5 or not while_opening:
            for _ in children:
                os.read(read_end, 1)
        time.sleep(dice.uniform(0, longest_s))
        ends = [killed(child) for child in children]
        os.close(read_end)
        if not all(ends):
            return False
    return True
