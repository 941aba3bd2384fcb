"""Keys: what enters them changes them, what does not leaves them, and they never drift.

``tests/golden/keys.json`` was written by ``python tests/statestore/keys/test_keys.py``, which
prints `golden()`. It is written anew only together with a new `KEY_VERSION`.
"""

from __future__ import annotations

import hashlib
import json
import os
import struct
import subprocess
import sys
from dataclasses import fields, replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from statestore.errors import InputError, PromptError, TokenError
from statestore.keys import (
    KEY_VERSION,
    ChunkRule,
    Fingerprint,
    Namespace,
    Plan,
    Role,
    StateKey,
    fork_at,
    fork_place,
    named_key,
    plan,
)
from tests.checkout import GOLDEN, ROOT

KEYS = GOLDEN / "keys.json"

FINGERPRINT = Fingerprint(
    weights_digest="ab" * 32,
    architecture="rwkv7",
    shapes=(("layers", 12), ("width", 768), ("vocabulary", 65536)),
    engine="rwkv_runtime",
    revision=1,
    device="cpu",
    dtype="fp32",
    chunk=256,
    min_chunk=32,
    extra=(("threads", "2"), ("libraries", "torch 2.13")),
)
CHANGES = {
    "weights_digest": "ac" * 32,
    "architecture": "rwkv6",
    "shapes": (("layers", 13), ("width", 768), ("vocabulary", 65536)),
    "engine": "another",
    "revision": 2,
    "device": "cuda",
    "dtype": "bf16",
    "chunk": 128,
    "min_chunk": 16,
    "initial_state": "01",
    "adapter": "01",
    "lossy": "fp16",
    "extra": (("threads", "1"), ("libraries", "torch 2.13")),
}
SMALL = ChunkRule(chunk=8, min_chunk=3, stride=2)


def golden() -> dict[str, object]:
    """Keys of fixed inputs, as they are kept in the file."""
    fingerprint = replace(FINGERPRINT, chunk=8, min_chunk=3)
    prompts = {
        "one token": [[0]],
        "document": [list(range(100, 150))],
        "document and question": [list(range(100, 150)), [7, 65535, 2**32 - 1, 0]],
        "short rest flows on": [list(range(10)), [5], [1, 2, 3, 4]],
    }
    spaces = {"default": Namespace(), "salted": Namespace("team-a", b"\x00salt")}
    return {
        "key_version": KEY_VERSION,
        "fingerprint": fingerprint.digest.hex(),
        "named": str(named_key(Namespace(), "chat", fingerprint.digest, 17)),
        "plans": {
            f"{space}: {name}": described(plan(segments, fingerprint, SMALL, namespace))
            for space, namespace in spaces.items()
            for name, segments in prompts.items()
        },
    }


def described(made: Plan) -> dict[str, object]:
    return {
        "ends": list(made.ends),
        "boundaries": [
            [str(b.key), b.token_digest.hex(), b.role.value, b.stable, b.segment]
            for b in made.boundaries
        ],
    }


def test_keys_are_those_of_the_golden_file() -> None:
    assert golden() == json.loads(KEYS.read_text())


def test_another_process_makes_the_same_keys() -> None:
    environment = os.environ | {"PYTHONHASHSEED": "12345", "PYTHONPATH": str(ROOT)}
    printed = subprocess.run(
        [sys.executable, __file__], env=environment, capture_output=True, check=True, text=True
    )
    assert json.loads(printed.stdout) == json.loads(KEYS.read_text())


def by_hand(fingerprint: bytes, name: str, salt: bytes, chunks: list[list[int]]) -> bytes:
    """The chain of the design, written out."""

    def h(*parts: bytes) -> bytes:
        return hashlib.sha256(b"".join(struct.pack("<Q", len(p)) + p for p in parts)).digest()

    link = h(b"rwkv-statestore/prefix/1", fingerprint, name.encode(), salt)
    for chunk in chunks:
        link = h(link, struct.pack("<Q", len(chunk)), struct.pack(f"<{len(chunk)}I", *chunk))
    return link


@given(st.binary(min_size=32, max_size=32), st.binary(max_size=8), st.integers(1, 40))
def test_the_key_is_the_hash_chain_over_the_chunks(digest: bytes, salt: bytes, n: int) -> None:
    tokens = list(range(n))
    made = plan([tokens], digest, SMALL, Namespace("a.b", salt))
    chunks = [tokens[b:e] for b, e in zip((0, *made.ends), made.ends, strict=False)]
    assert made.boundaries[-1].key == StateKey(by_hand(digest, "a.b", salt, chunks), n)


@pytest.mark.parametrize("name", [item.name for item in fields(Fingerprint)])
def test_every_field_of_the_fingerprint_changes_it(name: str) -> None:
    assert replace(FINGERPRINT, **{name: CHANGES[name]}).digest != FINGERPRINT.digest


def test_the_order_of_pairs_means_nothing() -> None:
    turned = replace(FINGERPRINT, shapes=FINGERPRINT.shapes[::-1], extra=FINGERPRINT.extra[::-1])
    assert turned == FINGERPRINT
    assert turned.digest == FINGERPRINT.digest


def test_a_value_cannot_slip_from_one_field_into_the_next() -> None:
    one = replace(FINGERPRINT, extra=(("a", "b"), ("c", "d")))
    other = replace(FINGERPRINT, extra=(("a", "bextra:cd"),))
    assert one.digest != other.digest


def test_a_fingerprint_shows_itself_as_json() -> None:
    shown = json.loads(json.dumps(FINGERPRINT.to_dict()))
    assert shown["shapes"] == {"layers": 12, "width": 768, "vocabulary": 65536}
    assert set(shown) == {item.name for item in fields(Fingerprint)}


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("weights_digest", ""),
        ("weights_digest", "xyz"),
        ("adapter", "AB"),
        ("architecture", ""),
        ("engine", 3),
        ("revision", -1),
        ("chunk", True),
        ("shapes", (("layers", "12"),)),
        ("extra", (("threads", 2),)),
        ("extra", (("threads", "1"), ("threads", "2"))),
        ("extra", (("", "1"),)),
        ("extra", (("name", "\udcff"),)),
        ("device", "cpu\udcff"),
    ],
)
def test_a_fingerprint_field_without_sense_is_named(name: str, value: object) -> None:
    with pytest.raises(InputError, match=f"fingerprint field {name}"):
        replace(FINGERPRINT, **{name: value})


@given(st.lists(st.lists(st.integers(0, 9), max_size=12), min_size=1, max_size=4))
def test_a_plan_reads_the_segments_in_order(segments: list[list[int]]) -> None:
    flat = [token for segment in segments for token in segment]
    if not flat:
        with pytest.raises(PromptError):
            plan(segments, bytes(32), SMALL)
        return
    made = plan(segments, bytes(32), SMALL)
    assert made.tokens == struct.pack(f"<{len(flat)}I", *flat)
    assert made.n_tokens == len(flat) == made.ends[-1] == made.boundaries[-1].position
    assert [key.n_tokens for key in made.keys] == list(made.ends)
    assert made.keys_deepest_first == made.keys[::-1]
    assert all(b.key.n_tokens == b.position for b in made.boundaries)
    assert {b.key for b in made.boundaries} <= set(made.keys)
    for position in (0, *made.ends, made.n_tokens + 1):
        behind = [key for key in made.keys if key.n_tokens > position]
        assert list(made.keys_behind(position)) == behind[::-1]
        last = made.boundaries[-1]
        stays = [key for key in behind if key.n_tokens < made.n_tokens or last.stable]
        assert list(made.stable_behind(position)) == stays


@given(
    st.lists(st.lists(st.integers(0, 9), max_size=12), min_size=1, max_size=4),
    st.lists(st.lists(st.integers(0, 9), min_size=1, max_size=12), min_size=1, max_size=2),
)
def test_a_fork_is_the_boundary_that_another_plan_may_have_there(
    segments: list[list[int]], more: list[list[int]]
) -> None:
    if not any(segments):
        return
    space = Namespace("a.b", b"salt")
    short = plan(segments, bytes(32), SMALL, space)
    long = plan([*segments, *more], bytes(32), SMALL, space)
    assert set(short.stable_behind(0)) <= set(long.keys)
    known = {b.key: b for b in long.boundaries if b.stable}
    for key in long.stable_behind(0):
        made = fork_at(long, key, space)
        assert (made.role, made.stable, made.position) == (Role.FORK, True, key.n_tokens)
        if key in known:
            assert replace(made, role=known[key].role) == known[key]


@pytest.mark.parametrize(
    ("sighted", "found", "end", "place"),
    [
        (0, 0, 5, None),
        (3, 0, 5, 2),
        (3, 2, 5, 2),
        (3, 3, 5, None),
        (6, 0, 5, None),
        (1, 0, 0, None),
    ],
)
def test_a_fork_lies_between_what_was_found_and_the_end(
    sighted: int, found: int, end: int, place: int | None
) -> None:
    assert fork_place(sighted, found, end) == place


@given(
    st.lists(st.integers(0, 50), min_size=1, max_size=60),
    st.lists(st.integers(0, 50), min_size=1, max_size=20),
)
def test_a_longer_prompt_finds_the_stable_keys_of_its_beginning(
    document: list[int], question: list[int]
) -> None:
    alone, asked = plan([document], bytes(32), SMALL), plan([document, question], bytes(32), SMALL)
    stable = {b.key for b in alone.boundaries if b.stable}
    assert stable <= {b.key for b in asked.boundaries}


def test_one_other_token_changes_every_key_from_there_on() -> None:
    tokens = list(range(40))
    changed = [*tokens[:20], 99, *tokens[21:]]
    pairs = zip(
        plan([tokens], bytes(32), SMALL).boundaries,
        plan([changed], bytes(32), SMALL).boundaries,
        strict=True,
    )
    for one, other in pairs:
        assert (one.key == other.key) == (one.position <= 20)
        assert (one.token_digest == other.token_digest) == (one.position <= 20)


def test_other_segments_are_other_keys_of_the_same_tokens() -> None:
    one = plan([[1, 2, 3, 4, 5, 6]], bytes(32), SMALL).boundaries[-1]
    other = plan([[1, 2, 3], [4, 5, 6]], bytes(32), SMALL).boundaries[-1]
    assert one.key != other.key
    assert one.token_digest == other.token_digest


def test_fingerprint_and_namespace_keep_keys_apart() -> None:
    tokens = [list(range(10))]
    spaces = [Namespace(), Namespace("b"), Namespace("b", b"x"), Namespace("b", b"y")]
    made = [
        plan(tokens, digest, SMALL, space).boundaries[-1]
        for digest in (bytes(32), b"\1" * 32)
        for space in spaces
    ]
    assert len({b.key for b in made}) == 8
    assert len({b.token_digest for b in made}) == 4  # the fingerprint is not in it


def test_the_plan_is_the_same_for_every_holder_of_the_tokens() -> None:
    tokens = list(range(300))
    wanted = plan([tokens], FINGERPRINT, ChunkRule())
    for dtype in ("<i8", ">u4", "u2"):
        assert plan([np.array(tokens, dtype)], FINGERPRINT, ChunkRule()) == wanted


def test_a_wrong_token_is_placed_in_its_segment() -> None:
    with pytest.raises(TokenError, match="segment 1: token 2 is -3"):
        plan([[1], [1, 2, -3]], bytes(32), SMALL)


def test_a_fingerprint_of_other_chunks_is_refused() -> None:
    with pytest.raises(InputError, match="one engine profile"):
        plan([[1]], FINGERPRINT, SMALL)


def test_a_digest_of_another_length_is_refused() -> None:
    with pytest.raises(InputError, match="32 bytes"):
        plan([[1]], b"short", SMALL)


def test_the_default_namespace_has_no_salt() -> None:
    assert plan([[1]], bytes(32), SMALL) == plan([[1]], bytes(32), SMALL, Namespace("default", b""))


def test_a_salt_is_shown_nowhere() -> None:
    space = Namespace("team", b"secret-salt")
    assert "secret" not in repr(space) + str(space)
    with pytest.raises(InputError) as caught:
        Namespace("no spaces", b"secret-salt")
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize("name", ["", "a b", "a/b", "x" * 65, "ä", "a\n", None, 3])
def test_a_namespace_needs_a_plain_name(name: object) -> None:
    with pytest.raises(InputError, match="namespace"):
        Namespace(name)  # type: ignore[arg-type]


def test_a_salt_is_bytes() -> None:
    with pytest.raises(InputError, match="bytes, not str"):
        Namespace("a", "salt")  # type: ignore[arg-type]


@given(st.binary(min_size=32, max_size=32), st.integers(0, 2**63 - 1))
def test_a_key_is_read_back_from_its_text(digest: bytes, n_tokens: int) -> None:
    key = StateKey(digest, n_tokens)
    assert StateKey.parse(str(key)) == key
    assert key.hex == digest.hex()


HEX = "a" * 64


@pytest.mark.parametrize(
    "text",
    [
        "",
        "abc-1",
        HEX,
        f"{HEX}-",
        f"{HEX.upper()}-1",
        f"{HEX}-01",
        f"{HEX}--1",
        f"{HEX}-1\n",
        f" {HEX}-1",
        f"{HEX}-1-1",
        f"{HEX}-{'9' * 20}",
    ],
)
def test_other_text_is_no_key(text: str) -> None:
    with pytest.raises(InputError, match="no state key"):
        StateKey.parse(text)


@pytest.mark.parametrize(
    ("digest", "n"),
    [
        (b"x", 1),
        ("a" * 32, 1),
        *((bytes(32), n) for n in (-1, 1 << 63, True, 1.0, "1", None, np.int64(1))),
    ],
)
def test_a_key_without_sense_is_refused(digest: bytes, n: int) -> None:
    with pytest.raises(InputError, match="state key"):
        StateKey(digest, n)


def test_named_keys_are_apart_from_each_other_and_from_prefixes() -> None:
    digest = bytes(32)
    keys = {
        named_key(Namespace(), "a", digest, 1).digest,
        named_key(Namespace(), "b", digest, 1).digest,
        named_key(Namespace("other"), "a", digest, 1).digest,
        named_key(Namespace("default", b"salt"), "a", digest, 1).digest,
        named_key(Namespace(), "a", b"\1" * 32, 1).digest,
        plan([[1]], digest, SMALL).boundaries[-1].key.digest,
    }
    assert len(keys) == 6
    assert named_key(Namespace(), "a", digest, 1).digest in keys
    assert named_key(Namespace(), "a", digest, 9).digest in keys
    with pytest.raises(InputError, match="needs a name"):
        named_key(Namespace(), "", digest, 1)
    with pytest.raises(InputError, match="no character"):
        named_key(Namespace(), "a\udcff", digest, 1)
    with pytest.raises(InputError, match="32 bytes"):
        named_key(Namespace(), "a", b"", 1)


def test_roles_have_the_names_that_catalogs_keep() -> None:
    assert [role.value for role in Role] == ["segment", "prompt", "fork", "sparse", "named"]


if __name__ == "__main__":
    print(json.dumps(golden(), indent=1))
