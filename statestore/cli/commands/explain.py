"""`statestore explain`: why a prompt, given as token ids, would hit or miss."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Final

import click

from statestore.cli.options import as_json_option, pass_config
from statestore.cli.render import counted, emit_json, emit_table
from statestore.cli.token_files import read_segments
from statestore.config import Config
from statestore.entry import Entry, EntryFilter
from statestore.errors import InputError
from statestore.explain import Verdict, Why, explain
from statestore.keys import ChunkRule, Namespace, Plan, plan
from statestore.settings import open_store
from statestore.store import Identity, StateStore

#: States whose fingerprint is looked at where none is given: in Redis a second.
LOOKED_AT: Final = 10_000


@dataclass(frozen=True, slots=True)
class Outlook:
    """What a lookup of one prompt would find, and why not more."""

    prompt: Plan
    verdicts: Sequence[Verdict]
    found: Entry | None  # whose state a lookup would use

    @classmethod
    def of(cls, store: StateStore, identity: Identity, prompt: Plan) -> Outlook:
        """Ask the store; raises `BackendError` where it cannot answer."""
        verdicts = explain(store, identity, prompt.boundaries)
        keys = prompt.keys_deepest_first
        found = store.backend.longest(keys, store.now())
        if found is not None and found.key == keys[0] and not found.has_output:
            found = store.backend.longest(keys[1:], store.now())  # its first token needs more
        return cls(prompt, verdicts, found)

    @property
    def found_tokens(self) -> int:
        """How many of the prompt's tokens need not be computed."""
        return 0 if self.found is None else self.found.key.n_tokens

    def emit(self, *, as_json: bool) -> None:
        """Print it."""
        if as_json:
            emit_json(self.record())
            return
        rows = [_row(verdict) for verdict in self.verdicts]
        emit_table([">tokens", ">segment", "role", "why", "detail", "key"], rows, spare=["key"])
        click.echo()
        left = self.prompt.n_tokens - self.found_tokens
        if self.found is None:
            click.echo(f"A lookup finds nothing: {left} tokens are to be computed.")
        else:
            click.echo(
                f"A lookup finds the first {self.found_tokens} of {self.prompt.n_tokens} tokens "
                f"({self.found.key.hex[:16]}, {self.found.role}): {left} are to be computed."
            )

    def record(self) -> dict[str, object]:
        """It for JSON."""
        return {
            "tokens": self.prompt.n_tokens,
            "found_tokens": self.found_tokens,
            "found": None if self.found is None else str(self.found.key),
            "boundaries": [
                {
                    "position": verdict.boundary.position,
                    "segment": verdict.boundary.segment,
                    "role": verdict.boundary.role.value,
                    "key": str(verdict.boundary.key),
                    "why": verdict.why.value,
                    "detail": verdict.detail,
                }
                for verdict in self.verdicts
            ],
        }


@click.command("explain")
@click.argument("files", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option(
    "--fingerprint",
    metavar="HEX|FILE",
    help="Of the model: its digest, or a file with what `rwkv-runtime fingerprint --json` prints. "
    "By default the one that the stored states have.",
)
@click.option("--model", help="Take the fingerprint of the stored states of this model.")
@click.option("--chunk", type=click.IntRange(min=1), help="Tokens; else as the fingerprint says.")
@click.option("--min-chunk", type=click.IntRange(min=1), help="As --chunk.")
@click.option("--namespace", help="Whose states; its salt comes from the settings.")
@as_json_option
@pass_config
def explain_tokens(
    settings: Config,
    files: Sequence[Path],
    fingerprint: str | None,
    model: str | None,
    chunk: int | None,
    min_chunk: int | None,
    namespace: str | None,
    as_json: bool,
) -> None:
    """Say why a prompt would hit or miss, boundary by boundary.

    FILES hold token ids: numbers with one segment a line, or a JSON list of lists; - reads standard
    input. Several files are segments one after the other. `rwkv-runtime explain` takes text.

    \b
    Examples:
      echo '[[1, 2, 3], [4, 5]]' | statestore explain - --fingerprint fingerprint.json
      statestore --store ./states explain prompt.txt --model rwkv7-0.1b.pth
    """
    segments = [segment for file in files for segment in read_segments(file)]
    name = namespace or settings.store.namespace
    space = Namespace(name, settings.store.salt(name))
    with open_store(settings.store.url, create=False) as store:
        if fingerprint is None:
            digest, rule = _stored(store, name, model), ChunkRule()
        else:
            digest, rule = _given(fingerprint)
        rule = ChunkRule(chunk or rule.chunk, min_chunk or rule.min_chunk)
        outlook = Outlook.of(store, Identity(digest, name), plan(segments, digest, rule, space))
    outlook.emit(as_json=as_json)


def _given(text: str) -> tuple[bytes, ChunkRule]:
    """Digest and chunk rule of a fingerprint given in hex, or as a file of JSON."""
    if len(text) == 64:
        try:
            return bytes.fromhex(text), ChunkRule()
        except ValueError:
            pass  # a file's name, perhaps
    try:
        fields: Any = json.loads(Path(text).read_bytes())
        return bytes.fromhex(fields["digest"]), ChunkRule(fields["chunk"], fields["min_chunk"])
    except (OSError, ValueError, TypeError, KeyError):
        raise InputError(
            f"--fingerprint {text}: neither 64 hex digits nor a file that "
            "`rwkv-runtime fingerprint --json` wrote"
        ) from None


def _stored(store: StateStore, namespace: str, model: str | None) -> bytes:
    """The one fingerprint that the stored states of a namespace (and model) have, as far as the
    `LOOKED_AT` that were used last tell.
    """
    found: dict[bytes, str] = {}
    looked = 0
    for entry in islice(store.list(EntryFilter(namespace=namespace, model=model)), LOOKED_AT):
        looked += 1
        found.setdefault(entry.fingerprint, entry.model)
        if len(found) > 1:
            raise InputError(_several(found, model))
    if not found:
        raise InputError("no state is stored to take the fingerprint of: give --fingerprint")
    if looked == LOOKED_AT:
        click.echo(
            f"The fingerprint is that of the {counted(looked, 'state')} used last; "
            "for others give --fingerprint or --model.",
            err=True,
        )
    return next(iter(found))


def _several(found: Mapping[bytes, str], model: str | None) -> str:
    """What to say where the first two fingerprints differ; there may be more of them."""
    names = ", ".join(f"{digest.hex()} ({name})" for digest, name in found.items())
    if model is None and len(set(found.values())) > 1:
        return (
            f"states of several models are stored: give --model or --fingerprint; two are {names}"
        )
    return (
        "states of several settings of one model are stored: give --fingerprint, "
        f"as `rwkv-runtime fingerprint` prints it; two are {names}"
    )


def _row(verdict: Verdict) -> list[str]:
    boundary = verdict.boundary
    colour = {Why.FOUND: "green", Why.NEVER_STORED: None}.get(verdict.why, "yellow")
    return [
        str(boundary.position),
        str(boundary.segment),
        boundary.role.value,
        click.style(verdict.why.value, fg=colour),
        verdict.detail if verdict.detail != verdict.why else "",
        boundary.key.hex[:16],
    ]
