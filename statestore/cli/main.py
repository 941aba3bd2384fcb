"""The `statestore` command: its options, and the table of its commands. Each command has a file of
its own, loaded when it is called, and opens the store that --store or RWKV_STATESTORE_URL names.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

import click

from statestore.cli.group import LazyGroup, Line
from statestore.cli.options import CONFIG, config_option
from statestore.cli.urls import StoreUrl
from statestore.config import load

_TABLE: Final = {
    "Look": {
        "ls": ("ls:list_entries", "List what is stored, newest use first."),
        "show": (
            "show:show",
            "Show one state: its entry, what a hit saves, its container.",
        ),
        "stats": (
            "stats:stats",
            "Totals of what is stored, the hit rate of lookups, and what hits have saved.",
        ),
        "explain": (
            "explain:explain_tokens",
            "Say why a prompt would hit or miss, boundary by boundary.",
        ),
    },
    "Check": {
        "doctor": (
            "doctor:doctor",
            "Look at settings, places and speed, and say what to do about what is wrong.",
        ),
        "verify": ("verify:verify", "Read and check every blob that may be used."),
        "bench": ("bench:bench", "Measure this store on this machine; nothing is left behind."),
    },
    "Tidy": {
        "pin": ("pin:pin", "Keep states when room is made."),
        "unpin": ("pin:unpin", "Let states go when room is made."),
        "evict": ("evict:evict", "Remove what is worth least."),
        "rm": ("rm:rm", "Remove states."),
        "gc": ("gc:gc", "Remove expired entries, and what interrupted writes left behind."),
    },
    "Move": {
        "export": ("export:export", "Write states into one FILE."),
        "import": ("import_:import_states", "Store the states of a FILE that `export` wrote."),
        "copy": ("copy:copy", "Copy states from one store to another, of whatever kind."),
    },
    "Set up": {
        "db": ("db:database", "Look at the catalog's tables, upgrade them, take them back."),
        "keygen": (
            "keygen:keygen",
            "Make a key FILE, readable by you alone, for the keys= option of a store's URL.",
        ),
        "completion": (
            "completion:completion",
            "Print the script that completes this command's words in SHELL.",
        ),
        "config": ("config:config", "Show the settings, and where each one came from."),
        "simulate": (
            "simulate:simulate",
            "Replay recorded requests and show what would have been found, stored and dropped.",
        ),
    },
}
_STORELESS: Final = ("completion", "copy", "keygen", "simulate")  # broken settings do not stop them
_LINES: Final = [
    Line(name, f"statestore.cli.commands.{place}", summary, section)
    for section, commands in _TABLE.items()
    for name, (place, summary) in commands.items()
]


@click.group(
    "statestore",
    cls=LazyGroup,
    lines=_LINES,
    context_settings={"help_option_names": ["-h", "--help"]},
)
@click.option(
    "--store",
    "url",
    type=StoreUrl(),
    metavar="URL",
    help="The store; a directory means file://. By default $RWKV_STATESTORE_URL, else what the "
    "settings say, else a directory among the user's application data.",
)
@config_option
@click.version_option(package_name="rwkv-statestore", message="%(prog)s %(version)s")
@click.pass_context
def main(ctx: click.Context, url: str | None, file: Path | None) -> None:
    """Look at a store of RWKV states, check it, tidy it.

    \b
    Examples:
      statestore --store ./states ls
      statestore --store ./states verify --fix
      RWKV_STATESTORE_URL=file:///var/lib/states statestore stats --json

    \b
    What any URL may say, as in 'file:///var/lib/states?budget=50GiB&ttl=7d':
      budget=50GiB  how much may be stored; budget.NAME=5GiB: in a namespace
      high=95%      of each budget: above it room is made; all, by default
      low=90%       down to it; by default just enough for what comes
      ttl=7d        when a state expires, counted from its put
      policy=NAME   what goes first: learned (default), gdsf, lfu, lru
      codec=NAME    how states are written: lossless (default), raw, auto
      keys=FILE     encrypt; or keys=env:VARIABLE; see keygen
      find_ms=250   deadline of a lookup; fetch_ms=2000: of a load

    \b
    Exit codes:
      0    done
      1    not done: something failed, or you said no
      2    a mistake in the command, a URL or a setting
      3    damage was found
      4    the place that keeps states is down, full, or of another release
      5    no such key is stored
      130  stopped by Ctrl-C
    """
    if ctx.invoked_subcommand not in _STORELESS:
        config = load(file, flags={"store.url": url})
        ctx.obj, ctx.meta[CONFIG] = config.store.url, config
