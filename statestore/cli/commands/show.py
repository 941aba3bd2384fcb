"""`statestore show`: all that is known of one state, its container's header included."""

from __future__ import annotations

import time
from dataclasses import dataclass

import click

from statestore import codec
from statestore.backends.base import Buffer
from statestore.cli.columns import plain
from statestore.cli.options import as_json_option
from statestore.cli.render import age, counted, digits, emit_fields, emit_json, record, size, worth
from statestore.entry import Entry
from statestore.errors import ContainerError, LockedError
from statestore.settings import open_store
from statestore.store import StateStore
from statestore.transfer import check, untimed


@click.command()
@click.argument("key")
@as_json_option
@click.pass_obj
def show(url: str, key: str, as_json: bool) -> None:
    """Show one state: its entry, what a hit saves, its container. KEY may be its first hex digits.

    The container is read and checked, as a load would.

    "score" is a moment, in seconds since the epoch: until then the state is worth its bytes, as the
    policy reckoned at its last put or use. The lowest goes first with `statestore evict` and the
    policies gdsf, lfu and lru; `learned`, the default, judges anew when room is needed.

    \b
    Example:
      statestore --store ./states show 3fa9
    """
    with open_store(url, create=False) as store:
        entry = store.entry(digits(key))
        found = _container(store, entry)
    if as_json:
        emit_json(
            {**record(entry), "saved_s": entry.hits * entry.cost_s, "container": found.json()}
        )
    else:
        emit_fields({**_fields(entry, time.time()), **found.fields()})


@dataclass(frozen=True, slots=True)
class _Container:
    """What lies in the blob; without a header it cannot be read."""

    problem: str
    header: codec.Header | None = None

    def json(self) -> dict[str, object]:
        """For scripts."""
        if self.header is None:
            return {"sound": False, "problem": self.problem}
        header = self.header
        return {
            "sound": not self.problem,
            "problem": self.problem,
            "codec": _codec(header),
            "frames": len(header.frames),
            "key_id": None if header.seal is None else header.seal.key_id.hex(),
            "provenance": dict(header.provenance),
            "tensors": [
                {"name": spec.name, "dtype": spec.dtype.value, "shape": list(spec.shape)}
                for spec in header.specs
            ],
        }

    def fields(self) -> dict[str, object]:
        """For people."""
        said: dict[str, object] = {"container": self.problem or "sound"}
        if self.header is not None:
            header = self.header
            sealed = header.seal and f", encrypted with key {header.seal.key_id.hex()}"
            frames = counted(len(header.frames), "frame")
            said["codec"] = f"{_codec(header)}, {frames}{sealed or ''}"
            names = {spec.name.rpartition(".")[2]: spec for spec in reversed(header.tensors)}
            said["tensors"] = f"{len(header.tensors)}: " + ", ".join(
                f"{name} {spec.dtype}{list(spec.shape)}" for name, spec in names.items()
            )
            said["output"] = str(header.output or "none")
        return said


def _container(store: StateStore, entry: Entry) -> _Container:
    """What lies in the blob of `entry`."""
    try:
        blob = untimed(store.backend).read(entry)
    except ContainerError as error:
        return _Container(f"{type(error).__name__}: {error}")
    if blob is None:
        return _Container("Missing: the blob has gone")
    try:
        header = check(entry, blob)
        if header.seal is not None:
            codec.decode(blob)  # says which key it wants
    except LockedError as error:
        return _Container(f"{type(error).__name__}: {error}", codec.read_header(blob))
    except ContainerError as error:
        return _Container(f"{type(error).__name__}: {error}", _header(blob))
    return _Container("", header)


def _header(blob: Buffer) -> codec.Header | None:
    try:
        return codec.read_header(blob)
    except ContainerError:
        return None


def _codec(header: codec.Header) -> str:
    return "raw" if all(frame.codec == "raw" for frame in header.frames) else "lossless"


def _fields(entry: Entry, now: float) -> dict[str, object]:
    gain = entry.key.n_tokens - entry.ancestor_tokens
    said = {
        "key": entry.key,
        "tokens": entry.key.n_tokens,
        "ancestor": f"at {entry.ancestor_tokens} tokens" if entry.ancestor_tokens else "none",
        "role": entry.role.value,
        "model": plain(entry.model) or "-",
        "namespace": plain(entry.namespace),
        "fingerprint": entry.fingerprint.hex(),
        "token digest": entry.token_digest.hex(),
        "schema": plain(entry.schema_id),
        "size": f"{size(entry.blob_bytes)}, decoded {size(entry.state_bytes)}",
        "a hit saves": f"{entry.cost_s:.2f} s, {entry.key.n_tokens} tokens; "
        f"{gain} beyond its ancestor",
        "hits": f"{entry.hits}, which saved {age(entry.hits * entry.cost_s)}",
        "stored": f"{age(now - entry.created_at)} ago",
        "used": f"{age(now - entry.used_at)} ago",
        "score": f"{entry.score:.3f}, {worth(entry.score, now)}",
        "pinned": "yes" if entry.pinned else "no",
        "expires": "never" if entry.expires_at is None else _moment(entry.expires_at, now),
        "status": f"{entry.status.value}{entry.reason and ': '}{plain(entry.reason)}",
        "blob": entry.blob,
    }
    labels = {f"label {plain(name)}": plain(text) for name, text in entry.labels.items()}
    tier = {"tier": entry.tier} if entry.tier else {}
    return {**said, **labels, **tier}


def _moment(at: float, now: float) -> str:
    return f"in {age(at - now)}" if at > now else f"{age(now - at)} ago"
