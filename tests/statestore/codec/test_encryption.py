"""Encrypted containers: the same bytes come back, nothing can be changed unseen, and a key that is
not here is a miss and no damage.

The golden containers were written by ``python tests/statestore/codec/test_encryption.py``.
"""

from __future__ import annotations

import secrets
import stat
from pathlib import Path

import msgpack
import numpy as np
import pytest
from click.testing import CliRunner
from xxhash import xxh3_128

from statestore import open_store
from statestore.backends.memory.backend import MemoryBackend
from statestore.backends.wrappers.encrypted import Encrypted
from statestore.cli import main
from statestore.codec import CODEC_NAMES, CodecName, decode, read_header
from statestore.codec.sealing import seal, unseal
from statestore.entry import EntryFilter, Role, Status
from statestore.errors import (
    BackendError,
    ContainerError,
    CorruptError,
    ForeignError,
    LockedError,
    NotAContainerError,
    SettingsError,
)
from statestore.keyring import Key, Keyring, load_keys, new_key, parse_keys, write_key_file
from statestore.schema import DType, State, Tensor
from statestore.store import Identity, PutOutcome, StateStore
from tests.checkout import GOLDEN
from tests.statestore.codec.codec_samples import (
    FINGERPRINT,
    KEY,
    TOKENS,
    assert_same,
    blob_of,
    opened,
    sealed,
    small_state,
)

SECRET = Key(bytes(range(100, 132)))
SALT = bytes(range(32))
KEYS = Keyring((SECRET,))
IDENTITY = Identity(FINGERPRINT)
codecs = pytest.mark.parametrize("codec", CODEC_NAMES)


def golden_file(codec: str) -> Path:
    return GOLDEN / f"container-v2-{codec}.bin"


def sealed_blob(codec: CodecName, key: Key = SECRET, salt: bytes | None = None) -> bytes:
    return b"".join(seal([blob_of(small_state(), codec)], key, salt=salt))


@codecs
def test_the_same_container_comes_back(codec: CodecName) -> None:
    assert bytes(unseal(sealed_blob(codec), KEYS)) == blob_of(small_state(), codec)


def test_a_large_container_comes_back() -> None:
    words = np.random.default_rng(0).standard_normal(700_000, "f4")
    state = State("s", (Tensor.of("t", DType.F32, words.shape, words),))
    for codec in CODEC_NAMES:
        blob = blob_of(state, codec)
        assert bytes(unseal(b"".join(seal([blob[:1000], blob[1000:]], SECRET)), KEYS)) == blob


def test_an_empty_state_is_authenticated_too() -> None:
    blob = blob_of(State("nothing", ()), "raw")
    whole = b"".join(seal([blob], SECRET))
    assert bytes(unseal(whole, KEYS)) == blob
    fields, rest = opened(whole)
    forged = sealed(msgpack.packb(fields | {"schema": "nothinG"}), version=2) + rest
    with pytest.raises(CorruptError, match="the header does not match its tag"):
        unseal(forged, KEYS)


@codecs
def test_the_golden_container_opens(codec: CodecName) -> None:
    blob = golden_file(codec).read_bytes()
    assert_same(decode(unseal(blob, KEYS))[1], small_state())
    assert blob[8] == 2
    assert sealed_blob("raw", salt=SALT) == golden_file("raw").read_bytes()


@codecs
def test_every_changed_byte_is_found(codec: CodecName) -> None:
    blob = bytearray(sealed_blob(codec))
    for place in range(len(blob)):
        blob[place] ^= 1 << place % 8
        with pytest.raises(ContainerError):
            unseal(blob, KEYS)
        blob[place] ^= 1 << place % 8
    unseal(blob, KEYS)


@codecs
def test_what_is_changed_under_right_checksums_is_found(codec: CodecName) -> None:
    """Whoever changes a blob on purpose mends its checksums as well."""
    blob = sealed_blob(codec)
    fields, rest = opened(blob)
    for name, value in {
        "key": bytes(32), "tokens": 1233, "fingerprint": bytes(32), "namespace": "defaulT",
        "token_digest": bytes(32), "schema": "rwkv-test/2", "provenance": {"role": "segmenT"},
    }.items():  # fmt: skip
        changed = fields[name] | value if name == "provenance" else value
        packed = msgpack.packb(fields | {name: changed})
        with pytest.raises(CorruptError, match="the header does not match its tag"):
            unseal(sealed(packed, version=2) + rest, KEYS)
    header = read_header(blob)
    for i, frame in enumerate(header.frames):
        for place in (frame.offset, frame.offset + frame.length - 1):
            forged = bytearray(blob)
            forged[place] ^= 1
            checksum = xxh3_128(forged[frame.offset : frame.offset + frame.length]).digest()
            table = bytearray(fields["frames"])
            table[48 * i + 32 : 48 * i + 48] = checksum
            packed = msgpack.packb(fields | {"frames": bytes(table)})
            body = bytes(forged[32 + len(packed) :])
            with pytest.raises(CorruptError, match=f"frame {i} does not match its tag"):
                unseal(sealed(packed, version=2) + body, KEYS)


def test_a_container_under_another_salt_or_of_another_state_is_no_replacement() -> None:
    one, other = sealed_blob("raw"), sealed_blob("raw")
    assert one != other
    fields, _ = opened(one)
    _, rest = opened(other)
    with pytest.raises(CorruptError):
        unseal(sealed(msgpack.packb(fields), version=2) + rest, KEYS)


@codecs
def test_nothing_of_the_tensors_is_to_be_seen(codec: CodecName) -> None:
    values = np.frombuffer(secrets.token_bytes(4096), "<u2").astype("<u4") + 0x3F800000
    state = State("s", (Tensor.of("t", DType.F32, values.shape, values.view("<f4")),))
    clear = blob_of(state, codec)
    blob = b"".join(seal([clear], SECRET))
    for source in (clear[read_header(clear).frames[0].offset :], bytes(state["t"].data)):
        for start in range(0, len(source) - 8, 4):
            assert source[start : start + 8] not in blob
    assert SECRET.secret not in blob


@codecs
def test_without_its_key_a_container_is_locked_and_its_header_is_read(codec: CodecName) -> None:
    blob = sealed_blob(codec)
    with pytest.raises(LockedError, match=f"encrypted with key {SECRET.id.hex()}: open"):
        decode(blob)
    with pytest.raises(LockedError, match="the keys here are"):
        unseal(blob, Keyring((new_key(),)))
    assert read_header(blob).key == KEY


def test_what_is_not_encrypted_is_refused() -> None:
    with pytest.raises(ForeignError, match="not encrypted"):
        unseal(blob_of(small_state(), "raw"), KEYS)
    with pytest.raises(NotAContainerError):
        seal([b"something else"], SECRET)
    with pytest.raises(ForeignError, match="already"):
        seal([sealed_blob("raw")], SECRET)


def put(store: StateStore) -> PutOutcome:
    return store.put(IDENTITY, KEY, small_state(), token_digest=TOKENS, role=Role.SEGMENT)


def test_a_store_with_keys_keeps_nothing_clear_and_changes_keys(tmp_path: Path) -> None:
    old, new = write_key_file(tmp_path / "old"), write_key_file(tmp_path / "new")
    both = tmp_path / "both"
    both.write_text((tmp_path / "new").read_text() + (tmp_path / "old").read_text())
    place = (tmp_path / "store").as_uri()
    with open_store(f"{place}?keys={tmp_path / 'old'}") as store:
        assert put(store) is PutOutcome.PUBLISHED
        found = store.get(IDENTITY, KEY)
        assert found is not None
        assert_same(found.state, small_state())
    (blob,) = (path for path in (tmp_path / "store").rglob(f"{KEY}.*") if path.is_file())
    assert read_header(blob.read_bytes()).seal.key_id == old.id
    assert found.entry.blob_bytes == blob.stat().st_size
    with open_store(f"{place}?keys={both}") as store:
        assert store.get(IDENTITY, KEY) is not None
        store.delete(KEY)
        assert put(store) is PutOutcome.PUBLISHED
    (blob,) = (path for path in (tmp_path / "store").rglob(f"{KEY}.*") if path.is_file())
    assert read_header(blob.read_bytes()).seal.key_id == new.id


def test_a_key_that_is_not_here_is_a_miss_that_bars_nothing(tmp_path: Path) -> None:
    write_key_file(tmp_path / "one")
    write_key_file(tmp_path / "two")
    place = (tmp_path / "store").as_uri()
    with open_store(f"{place}?keys={tmp_path / 'one'}") as store:
        put(store)
    for url in (place, f"{place}?keys={tmp_path / 'two'}"):
        with open_store(url) as store:
            assert store.get(IDENTITY, KEY) is None
            assert [entry.status for entry in store.list()] == [Status.READY]
    with open_store(f"{place}?keys={tmp_path / 'one'}") as store:
        assert store.get(IDENTITY, KEY) is not None


def test_what_was_computed_for_a_locked_state_takes_its_place(tmp_path: Path) -> None:
    """A key that is lost must not bar its states for ever; whoever has no keys takes nothing's."""
    write_key_file(tmp_path / "one")
    write_key_file(tmp_path / "two")
    place = (tmp_path / "store").as_uri()
    with open_store(f"{place}?keys={tmp_path / 'one'}") as store:
        put(store)
        store.update(KEY, pinned=True)
    with open_store(place) as store:
        assert store.get(IDENTITY, KEY) is None
        assert put(store) is PutOutcome.PRESENT
    with open_store(f"{place}?keys={tmp_path / 'two'}") as store:
        assert put(store) is PutOutcome.PRESENT  # nobody has missed it here
        assert store.get(IDENTITY, KEY) is None
        assert put(store) is PutOutcome.PUBLISHED
        found = store.get(IDENTITY, KEY)
        assert found is not None
        assert found.entry.pinned
        assert put(store) is PutOutcome.PRESENT
        assert store.usage().entries == 1


def test_a_locked_state_that_was_replaced_meanwhile_is_left_alone(tmp_path: Path) -> None:
    write_key_file(tmp_path / "one")
    write_key_file(tmp_path / "two")
    place = (tmp_path / "store").as_uri()
    mine = open_store(f"{place}?keys={tmp_path / 'two'}")
    with mine, open_store(f"{place}?keys={tmp_path / 'one'}") as other:
        put(other)
        assert mine.get(IDENTITY, KEY) is None
        other.delete(KEY)
        put(other)
        assert put(mine) is PutOutcome.PRESENT
        assert other.get(IDENTITY, KEY) is not None


def test_verify_leaves_what_it_cannot_open(tmp_path: Path) -> None:
    write_key_file(tmp_path / "keys")
    place = (tmp_path / "store").as_uri()
    with open_store(f"{place}?keys={tmp_path / 'keys'}") as store:
        put(store)
    checked = CliRunner().invoke(main, ["--store", place, "verify", "--fix"])
    assert checked.exit_code == 3
    assert "LockedError" in checked.output
    with open_store(f"{place}?keys={tmp_path / 'keys'}") as store:
        assert store.get(IDENTITY, KEY) is not None


def test_a_clear_blob_in_an_encrypted_store_is_barred_and_replaced(tmp_path: Path) -> None:
    write_key_file(tmp_path / "keys")
    place = (tmp_path / "store").as_uri()
    with open_store(place) as store:
        put(store)
    with open_store(f"{place}?keys={tmp_path / 'keys'}") as store:
        assert store.get(IDENTITY, KEY) is None
        assert [entry.status for entry in store.list(EntryFilter(status=Status.QUARANTINED))]
        assert put(store) is PutOutcome.PUBLISHED
        assert store.get(IDENTITY, KEY) is not None


def test_what_is_no_container_never_leaves(tmp_path: Path) -> None:
    with open_store("memory:") as store:
        put(store)
        (entry,) = store.list()
    backend = Encrypted(MemoryBackend("", None), KEYS)
    with pytest.raises(BackendError, match="cannot be encrypted"):
        backend.publish(entry, [b"clear text"])
    assert list(backend.entries(EntryFilter())) == []
    backend.close()


def test_keys_are_read_from_a_variable_and_from_files(tmp_path: Path) -> None:
    text = f"# mine\n\n{SECRET.secret.hex()}  # the first\n{'ab' * 32}\n"
    keys = load_keys("env:STATES", {"STATES": text})
    (tmp_path / "keys").write_text(text)
    assert keys == load_keys(str(tmp_path / "keys"), {}) == parse_keys(text, "here")
    assert keys.first == SECRET
    assert keys.get(Key(b"\xab" * 32).id) == Key(b"\xab" * 32)
    assert keys.get(bytes(8)) is None


def test_a_new_key_file_is_its_owners_alone(tmp_path: Path) -> None:
    key = write_key_file(tmp_path / "keys")
    assert load_keys(str(tmp_path / "keys"), {}) == Keyring((key,))
    assert stat.S_IMODE((tmp_path / "keys").stat().st_mode) == 0o600
    with pytest.raises(SettingsError, match="cannot be made: File exists"):
        write_key_file(tmp_path / "keys")


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "holds no key"),
        ("# only words\n", "holds no key"),
        ("ab" * 31, "line 1: a key is 64 hex digits"),
        (f"{'ab' * 32}\n\n{'zz' * 32}", "line 3: a key is"),
        (f"{'ab' * 32}\n{'AB' * 32}", "line 2: this key is there already"),
    ],
)
def test_a_bad_key_file_is_named(text: str, says: str) -> None:
    with pytest.raises(SettingsError, match=says) as refused:
        parse_keys(text, "key file k")
    assert "abab" not in str(refused.value)


def test_keys_that_are_not_there_are_named(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="no variable 'STATES'"):
        load_keys("env:STATES", {})
    with pytest.raises(SettingsError, match="cannot be read: No such file"):
        open_store(f"{(tmp_path / 'store').as_uri()}?keys={tmp_path / 'none'}")
    (tmp_path / "binary").write_bytes(b"\xff" * 32)
    with pytest.raises(SettingsError, match="no text of hex digits"):
        load_keys(str(tmp_path / "binary"), {})


def test_no_secret_is_shown() -> None:
    assert SECRET.secret.hex() not in f"{SECRET} {SECRET!r} {KEYS} {KEYS!r}"
    assert str(bytes(SECRET.secret)) not in f"{SECRET!r} {KEYS!r}"


if __name__ == "__main__":
    for name in CODEC_NAMES:
        golden_file(name).write_bytes(sealed_blob(name, salt=SALT))
