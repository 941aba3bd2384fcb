"""One place: whether it opens, what it holds, whether and how fast it gives back what it takes."""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import Final

from statestore.backends.base import Mendable
from statestore.backends.leases import Outcome
from statestore.backends.sql.revisions import Standing
from statestore.backends.wrapper import Wrapper
from statestore.cli.checkup.budgets import budget_findings
from statestore.cli.checkup.disk import disk_findings
from statestore.cli.checkup.finding import Finding, Level
from statestore.cli.checkup.servers import postgres_findings, redis_findings
from statestore.cli.checkup.settings import open_to_others
from statestore.cli.limits import Limits
from statestore.cli.premises import Premises
from statestore.cli.render import counted, milliseconds, size
from statestore.cli.trial import STATES, Times, Trial, random_state
from statestore.entry import EntryFilter, Status, Usage
from statestore.errors import (
    CorruptError,
    FullError,
    InputError,
    SchemaVersionError,
    StateStoreError,
)
from statestore.keys import StateKey
from statestore.settings import open_revisions, open_store
from statestore.store import StateStore

_SAMPLE: Final = 8  # newest states that are read
_GRACE_S: Final = 3600.0  # younger blobs may be being written
_MANY: Final = 200_000  # entries, beyond which nobody waits for a listing of blobs
_COUNTED: Final = 1000  # orphans

#: Slower than that is told: seconds.
_SLOW_S: Final = {"lookup": 0.05, "find": 0.1, "put": 1.0}


def examine(place: Premises) -> Iterator[Finding]:
    """All that there is to say of one place; goes on after what fails."""
    tables = list(_guarded("tables", lambda: _tables(place)))
    yield from tables
    try:
        with open_store(place.url.text, create=False, flush_on_sigterm=False) as store:
            usage, limits = store.usage(), Limits.of(store.backend)
            budget = None if limits is None else limits.total_bytes
            yield from _holdings(usage, budget)
            if limits is not None:
                yield from budget_findings(store, usage, limits)
            yield from _guarded("sample", lambda: _sample(store))
            yield from _guarded("found", lambda: _found(store))
            yield from _guarded("leases", lambda: _leases(store))
            yield from _guarded("orphans", lambda: _orphans(store, usage))
    except StateStoreError as error:
        if not any(_says(finding, error) for finding in tables):
            yield Finding.bad("opens", error, _remedy(place, error))
        yield from _disk(place, None, 0)  # may be why
        return
    yield from _guarded("trial", lambda: _trial(place))
    yield from _disk(place, budget, usage.blob_bytes)
    if place.kind == "redis":
        yield from redis_findings(place, budget)
    if place.kind == "postgresql":
        yield from _guarded("server", lambda: postgres_findings(place))
    yield from _keys(place)


def _guarded(check: str, work: Callable[[], Iterator[Finding]]) -> Iterator[Finding]:
    try:
        yield from work()
    except StateStoreError as error:
        yield Finding.bad(check, error)


def _disk(place: Premises, budget: int | None, used: int) -> Iterator[Finding]:
    if place.directory is not None and place.directory.is_dir():
        holds_catalog = place.kind == "file"
        yield from disk_findings(place.directory, budget, used, holds_catalog=holds_catalog)


def _says(finding: Finding, error: StateStoreError) -> bool:
    """Whether a failure is this error, or what comes before it."""
    older = isinstance(error, SchemaVersionError)
    return finding.level is Level.FAILURE and (older or finding.text == str(error))


def _remedy(place: Premises, error: StateStoreError) -> str:
    if isinstance(error, SchemaVersionError | FullError | InputError):
        return ""  # the message names it
    if place.kind == "file":
        return "look at the directory, and at who owns it"
    return "look at the server, its address, and the password"


def _tables(place: Premises) -> Iterator[Finding]:
    if place.kind not in ("file", "postgresql"):
        return
    if place.kind == "file" and place.directory is not None and not place.directory.is_dir():
        return  # opening it says so
    with open_revisions(place.url.text) as revisions:
        status = revisions.status()
    text = f"the catalog is {status.standing}: at {status.found}, this release needs {status.head}"
    facts = {"revision": status.found, "head": status.head}
    if status.standing is Standing.NEWER:
        remedy = "upgrade here: pip install -U rwkv-statestore"
        yield Finding.bad("tables", SchemaVersionError(text), remedy, **facts)
    elif place.kind == "postgresql" and status.standing is not Standing.CURRENT:
        yield Finding.doubtful("tables", text, "statestore db upgrade", **facts)
    else:
        yield Finding.good("tables", text, **facts)


def _holdings(usage: Usage, budget: int | None) -> Iterator[Finding]:
    within = "no budget" if budget is None else f"of {size(budget)}"
    yield Finding.good(
        "holds",
        f"{counted(usage.entries, 'state')}, {size(usage.blob_bytes)}, {within}",
        entries=usage.entries,
        blob_bytes=usage.blob_bytes,
        budget_bytes=budget,
    )
    if usage.quarantined:
        yield Finding.doubtful(
            "quarantined",
            f"damaged and barred from use: {counted(usage.quarantined, 'state')}",
            "`ls --quarantined` lists them, `show KEY` says why; the next put of each replaces it",
            count=usage.quarantined,
        )


def _sample(store: StateStore) -> Iterator[Finding]:
    """The newest states are read, and decrypted."""
    newest = list(islice(store.list(EntryFilter(status=Status.READY)), _SAMPLE))
    problems = [(entry, problem) for entry in newest if (problem := store.check(entry))]
    problems = [(entry, problem) for entry, problem in problems if store.holds(entry)]
    if problems:
        entry, problem = problems[0]
        error = CorruptError(f"{len(problems)} of the newest {len(newest)}: {entry.key}: {problem}")
        remedy = "`statestore verify --fix` reads all, and bars what is damaged"
        if problem.startswith("LockedError"):
            remedy = "give the key that it was encrypted with: keys= in the URL"
        yield Finding.bad("sample", error, remedy)
    elif newest:
        yield Finding.good("sample", f"sound: the newest {counted(len(newest), 'state')}")


def _found(store: StateStore) -> Iterator[Finding]:
    """The newest states are looked for, as requests do."""
    now = store.now()
    listed = islice(store.list(EntryFilter(status=Status.READY)), _SAMPLE)
    newest = [entry for entry in listed if entry.expires_at is None or entry.expires_at > now]
    missed = [entry for entry in newest if store.backend.longest([entry.key], now) is None]
    missed = [entry for entry in missed if store.holds(entry)]
    if missed:
        yield Finding.doubtful(
            "found",
            f"{len(missed)} of the newest {len(newest)} are listed, and no lookup finds them: "
            f"{missed[0].key}",
            "`statestore gc` makes a file store's lookup filter anew",
        )


def _leases(store: StateStore) -> Iterator[Finding]:
    leases = store.leases
    if leases is None:
        yield Finding.doubtful(
            "leases", "no leases: workers may compute the same state at once", "use another place"
        )
        return
    key, owner = StateKey(secrets.token_bytes(32), 1), f"doctor-{secrets.token_hex(4)}"
    begun = time.perf_counter()
    taken = leases.acquire(key, owner, 10.0)
    leases.release(key, owner, Outcome.PUBLISHED)
    took = time.perf_counter() - begun
    if taken.owner != owner:
        yield Finding.doubtful(
            "leases", "a lease on a new key went to another", "look at the clock"
        )
    else:
        yield Finding.good("leases", f"taken and given back in {milliseconds(took)}", seconds=took)


def _orphans(store: StateStore, usage: Usage) -> Iterator[Finding]:
    backend = store.backend
    while isinstance(backend, Wrapper):
        backend = backend.inner
    if not isinstance(backend, Mendable) or usage.entries > _MANY:
        return
    found = list(islice(backend.orphans(store.now() - _GRACE_S), _COUNTED))
    if found:
        more = " or more" if len(found) == _COUNTED else ""
        yield Finding.doubtful(
            "orphans",
            f"{len(found)}{more} blobs without an entry, {size(sum(x.blob_bytes for x in found))}",
            "`statestore verify --fix` keeps those that are sound, `statestore gc` removes them",
            count=len(found),
        )
    else:
        yield Finding.good("orphans", "no blob without an entry", count=0)


def _trial(place: Premises) -> Iterator[Finding]:
    """States are put, found and looked up, in a namespace of their own, and removed."""
    small, large = random_state(STATES["tiny"]), random_state(STATES["0.1B"])
    with Trial(place) as trial:
        key, _ = trial.put(small)
        trial.find(key, small)
        trial.remove(key)
        key, put_s = trial.put(large)
        finds = Times.of(lambda: trial.find(key, large), 0.2)
        trial.remove(key)
        lookups = Times.of(trial.lookup(32_768), 0.1)
    size_ = f"{large.nbytes / 1e6:.1f} MB"
    yield _speed("put", f"a state of {size_} is put", put_s)
    yield _speed("find", "it is found and loaded", finds.median_s)
    yield _speed("lookup", "a prompt of 32,768 tokens is looked up", lookups.median_s)


def _speed(check: str, what: str, seconds: float) -> Finding:
    text = f"{what} in {milliseconds(seconds)}"
    if seconds <= _SLOW_S[check]:
        return Finding.good(check, text, seconds=seconds)
    remedy = "`statestore bench` tells more; a nearer tier such as memory: hides a slow place"
    return Finding.doubtful(check, text, remedy, seconds=seconds)


def _keys(place: Premises) -> Iterator[Finding]:
    where = place.url.common.get("keys")
    if where is None:
        return
    yield Finding.good("keys", "states are encrypted, and the key is here")
    if not where.startswith("env:") and (mode := open_to_others(Path(where))):
        text = f"{where} can be read by others (mode {mode})"
        yield Finding.doubtful("keys", text, f"chmod 600 {where}")
