"""Writes ``tests/golden/archive-v1.rwkvar``: run it once for each new format version, never again
for an old one.

    python -m tests.golden.make_golden_archive
"""

from __future__ import annotations

from pathlib import Path

from statestore.archive import FORMAT_VERSION, ArchiveWriter
from statestore.codec import Header, encode
from statestore.entry import Entry, Role
from statestore.keys import StateKey
from tests.checkout import GOLDEN
from tests.places.backend_places import digest
from tests.statestore.codec.codec_samples import FINGERPRINT, TOKENS, small_state

CODECS = ("raw", "lossless")


def golden_entry(number: int) -> Entry:
    """The entry of the state that is kept in the codec of this number."""
    state = small_state()
    return Entry(
        key=StateKey(digest(f"golden {number}"), 1000 + number),
        namespace="default",
        fingerprint=FINGERPRINT,
        token_digest=TOKENS,
        schema_id=state.schema_id,
        role=Role.SEGMENT,
        blob="",
        blob_bytes=0,
        state_bytes=state.nbytes,
        has_output=True,
        cost_s=1.5,
        created_at=1_700_000_000.25,
        used_at=1_700_000_100.5,
        hits=7 * number,
        score=1_700_000_100.5,
        ancestor_tokens=10 * number,
        pinned=bool(number),
        expires_at=None if number else 32_500_000_000.0,
        model="golden.pth",
        labels={"title": "ä", "x": ""} if number else {},
    )


def write(path: Path) -> None:
    with path.open("wb") as file:
        writer = ArchiveWriter.begin(file, {"place": "file:///golden", "selection": ""})
        for number, codec in enumerate(CODECS):
            entry, state = golden_entry(number), small_state()
            header = Header.of(
                state,
                key=entry.key,
                fingerprint=entry.fingerprint,
                namespace=entry.namespace,
                token_digest=entry.token_digest,
            )
            writer.add(entry, encode(header, state, codec))
        writer.finish()


if __name__ == "__main__":
    write(GOLDEN / f"archive-v{FORMAT_VERSION}.rwkvar")
