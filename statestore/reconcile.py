"""A place checked and mended: every blob, then blobs without an entry, then the totals.

* The entry of a damaged blob is quarantined, an entry whose blob has gone is removed. Either was a
  miss already; now the next put has room.
* A sound blob that no entry names, and that lies under the name its own key gives it, is catalogued
  again from its header. So a lost catalog comes back, but for hits, labels, pins and expiry. A
  state that was removed stays removed. Other left-over blobs wait for a sweep.
* Totals that disagree with the entries are summed anew.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import NamedTuple

from statestore import codec
from statestore.backends.base import Backend, Mendable, Orphan
from statestore.backends.fields import fitting
from statestore.backends.wrapper import Wrapper
from statestore.entry import Entry, Role
from statestore.errors import ContainerError, InputError
from statestore.keys import StateKey
from statestore.keys.state_key import TOKENS_LIMIT
from statestore.lanes import LANES, in_lanes
from statestore.store import StateStore
from statestore.transfer import check, locked, untimed


class Checked(NamedTuple):
    """An entry, and what is wrong with its blob; ``""``: nothing."""

    entry: Entry
    problem: str


@dataclass(frozen=True, slots=True)
class LeftOver:
    """A blob that no entry names."""

    blob: str
    blob_bytes: int
    entry: Entry | None  # what it would be catalogued as; ``None``: it is no sound state
    problem: str = ""
    adopted: bool = False


def check_all(
    store: StateStore, entries: Iterable[Entry], *, lanes: int = LANES
) -> Iterator[Checked]:
    """Read and check the blobs of `entries`, in order; what was removed meanwhile is sound."""

    def work(entry: Entry) -> Checked:
        problem = _problem(store, entry)
        return Checked(entry, problem if problem and store.holds(entry) else "")

    return in_lanes(entries, work, lanes)


def take_down(store: StateStore, checked: Checked) -> str:
    """What was done about an unsound entry; ``""``: it was replaced meanwhile, or stays."""
    entry, problem = checked
    if locked(problem):  # sound for whoever has the key
        return ""
    if problem.startswith("Missing"):
        reason = fitting(f"quarantined: {problem}", "reason")
        gone = untimed(store.backend).delete(entry.key, reason, blob=entry.blob)
        return "removed" if gone else ""
    return "quarantined" if store.quarantine(entry, problem) else ""


def left_overs(store: StateStore, grace_s: float, *, adopt: bool) -> Iterator[LeftOver]:
    """Blobs older than `grace_s` that no entry names; with `adopt`, sound ones get one.

    Nothing where the place does not tell blobs and entries apart.
    """
    place = mendable(store.backend)
    if place is None:
        return
    for orphan in place.orphans(store.now() - grace_s):
        entry, problem = _recognised(store, orphan)
        adopted = False
        if adopt and entry is not None:
            try:
                adopted = place.adopt(entry)
            except InputError as error:  # a sound container whose texts no catalog takes
                entry, problem = None, f"{type(error).__name__}: {error}"
        yield LeftOver(orphan.blob, orphan.blob_bytes, entry, problem, adopted)


def mendable(backend: Backend) -> Mendable | None:
    """The place behind all that is around it, if it can be mended."""
    while isinstance(backend, Wrapper):
        backend = backend.inner
    return backend if isinstance(backend, Mendable) else None


def entry_of(header: codec.Header, orphan: Orphan) -> Entry:
    """The entry that a container's header tells of; what it does not say is as for a new one."""
    notes = header.provenance
    created_at = _number(notes, "created_at", orphan.modified_at)
    return Entry(
        key=header.key,
        namespace=header.namespace,
        fingerprint=header.fingerprint,
        token_digest=header.token_digest,
        schema_id=header.schema_id,
        role=_role(notes.get("role", "")),
        blob=orphan.blob,
        blob_bytes=orphan.blob_bytes,
        state_bytes=header.state_bytes,
        has_output=header.output is not None,
        cost_s=_number(notes, "cost_s", 0.0),
        created_at=created_at,
        used_at=created_at,
        score=created_at,
        ancestor_tokens=_tokens(notes.get("ancestor_tokens", ""), header.key),
        model=notes.get("model", ""),
    )


def _recognised(store: StateStore, orphan: Orphan) -> tuple[Entry | None, str]:
    """The entry that a blob should have had; else ``None`` and why there is none."""
    text, _, _ = orphan.blob.rpartition(".")
    try:
        key = StateKey.parse(text)
    except InputError:
        return None, "Incomplete: an interrupted write"
    probe = _probe(key, orphan)
    try:
        codec.Limits().check("the blob's size in bytes", orphan.blob_bytes, _CONTAINER_BYTES)
        blob = untimed(store.backend).read(probe)
        if blob is None:
            return None, "Missing: the blob has gone"
        header = codec.read_header(blob)
        entry = entry_of(header, orphan)
        codec.expect(header, key, entry.fingerprint, entry.namespace)
        check(entry, blob)
    except ContainerError as error:
        return None, f"{type(error).__name__}: {error}"
    return entry, ""


_CONTAINER_BYTES = codec.Limits().container_bytes


def _probe(key: StateKey, orphan: Orphan) -> Entry:
    """An entry that is good enough to read the blob by."""
    nothing = bytes(32)
    at = orphan.modified_at
    return Entry(
        key=key,
        namespace="",
        fingerprint=nothing,
        token_digest=nothing,
        schema_id="",
        role=Role.SEGMENT,
        blob=orphan.blob,
        blob_bytes=orphan.blob_bytes,
        state_bytes=0,
        has_output=False,
        cost_s=0.0,
        created_at=at,
        used_at=at,
    )


def _problem(store: StateStore, entry: Entry) -> str:
    try:
        blob = untimed(store.backend).read(entry)
        if blob is None:
            return "Missing: the blob has gone"
        header = check(entry, blob)
        if header.seal is not None:  # whether it was changed cannot be told
            codec.decode(blob)
    except ContainerError as error:
        return f"{type(error).__name__}: {error}"
    return ""


def _number(notes: Mapping[str, str], name: str, otherwise: float) -> float:
    try:
        number = float(notes[name])
    except (KeyError, ValueError):
        return otherwise
    return number if math.isfinite(number) else otherwise


def _tokens(text: str, key: StateKey) -> int:
    count = int(text) if text.isascii() and text.isdigit() and len(text) < 20 else 0
    return count if count <= min(key.n_tokens, TOKENS_LIMIT - 1) else 0


def _role(name: str) -> Role:
    return Role(name) if name in [role.value for role in Role] else Role.SEGMENT
