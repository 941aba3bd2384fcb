"""Documents' tokens in a store: kept once, found by every worker, and nobody else's."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from rwkv_runtime.server.documents import Documents
from rwkv_runtime.server.errors import ApiError
from rwkv_runtime.tokenizer import ByteTokenizer, WorldTokenizer
from statestore.backends.wrappers.faulty import Fail, Fault, Faulty
from statestore.errors import InputError, TokenError, UnavailableError
from statestore.keys import Namespace
from statestore.settings import open_store
from statestore.store import StateStore

NAMESPACE = Namespace("tenant", b"salt")
TOKENS = list(b"What was read once.") * 20


@pytest.fixture
def url(tmp_path: Path) -> str:
    return (tmp_path / "states").as_uri()


@pytest.fixture
def store(url: str) -> Iterator[StateStore]:
    with open_store(url) as opened:
        yield opened


@pytest.fixture
def documents(store: StateStore) -> Documents:
    return Documents(store, ByteTokenizer())


def refusal(documents: Documents, id_: str, namespace: Namespace = NAMESPACE) -> ApiError:
    with pytest.raises(ApiError) as refused:
        documents.tokens(namespace, id_)
    return refused.value


def test_another_worker_finds_the_tokens(url: str, documents: Documents) -> None:
    put = documents.put(NAMESPACE, TOKENS, "a name")
    with open_store(url) as other:
        elsewhere = Documents(other, ByteTokenizer())
        assert elsewhere.tokens(NAMESPACE, put.id).tolist() == TOKENS
        assert elsewhere.get(NAMESPACE, put.id) == replace(
            put, created_at=pytest.approx(put.created_at, abs=5)
        )


def test_the_same_document_has_the_same_id(documents: Documents) -> None:
    first = documents.put(NAMESPACE, TOKENS, "a name")
    again = documents.put(NAMESPACE, TOKENS, "another")
    assert (again.id, again.name) == (first.id, "another")
    assert documents.put(NAMESPACE, TOKENS).name == "another"
    assert [each.id for each in documents.list(NAMESPACE)] == [first.id]


def test_ids_tell_no_tenant_of_another(store: StateStore, documents: Documents) -> None:
    namespaces = [NAMESPACE, Namespace("tenant", b"pepper"), Namespace("other", b"salt")]
    ids = {documents.put(namespace, TOKENS).id for namespace in namespaces}
    ids.add(Documents(store, WorldTokenizer()).put(NAMESPACE, TOKENS).id)
    ids.add(documents.put(NAMESPACE, TOKENS[:-1]).id)
    assert len(ids) == 5


def test_a_document_is_its_namespaces_own(documents: Documents) -> None:
    put = documents.put(NAMESPACE, TOKENS)
    for stranger in (Namespace("tenant", b"pepper"), Namespace("other", b"salt")):
        assert refusal(documents, put.id, stranger).status == 404
        with pytest.raises(ApiError):
            documents.delete(stranger, put.id)
    assert not list(documents.list(Namespace("other", b"salt")))
    assert documents.tokens(NAMESPACE, put.id).tolist() == TOKENS


def test_what_was_deleted_is_unknown_though_it_was_remembered(
    url: str, documents: Documents
) -> None:
    put = documents.put(NAMESPACE, TOKENS)
    assert documents.tokens(NAMESPACE, put.id).tolist() == TOKENS
    with open_store(url) as other:
        Documents(other, ByteTokenizer()).delete(NAMESPACE, put.id)
    assert refusal(documents, put.id).status == 404
    with pytest.raises(ApiError) as refused:
        documents.delete(NAMESPACE, put.id)
    assert refused.value.status == 404


def test_a_copy_in_memory_does_not_outlive_what_was_deleted(url: str) -> None:
    """Tiers: each process has a memory of its own before the store that all share."""
    with open_store(f"memory: {url}") as one, open_store(f"memory: {url}") as other:
        here, there = Documents(one, ByteTokenizer()), Documents(other, ByteTokenizer())
        put = here.put(NAMESPACE, TOKENS)
        there.put(NAMESPACE, TOKENS)
        assert other.backend.longest([there._key(NAMESPACE, put.id)], other.now()).tier == "memory"
        here.delete(NAMESPACE, put.id)
        assert refusal(there, put.id).status == 404
        assert not list(there.list(NAMESPACE))


def test_a_document_is_pinned_and_expires_when_it_should(url: str) -> None:
    with open_store(url) as store:
        clock = store.now()
        timed = StateStore(store.backend, clock=lambda: clock)
        documents = Documents(timed, ByteTokenizer())
        put = documents.put(NAMESPACE, TOKENS, ttl_s=60)
        assert all(entry.pinned for entry in store.list())
        clock += 59
        assert documents.tokens(NAMESPACE, put.id).tolist() == TOKENS
        clock += 2
        assert refusal(documents, put.id).status == 404
        assert not list(documents.list(NAMESPACE))


def test_putting_it_again_makes_it_last(documents: Documents) -> None:
    short = documents.put(NAMESPACE, TOKENS, ttl_s=60)
    longer = documents.put(NAMESPACE, TOKENS, ttl_s=600)
    assert longer.expires_at is not None
    assert short.expires_at is not None
    assert longer.expires_at > short.expires_at + 500
    assert documents.put(NAMESPACE, TOKENS, ttl_s=60).expires_at == pytest.approx(longer.expires_at)
    lasting = documents.put(NAMESPACE, TOKENS).expires_at
    assert lasting is not None
    assert lasting > longer.expires_at + 1e9
    assert documents.get(NAMESPACE, short.id).expires_at == pytest.approx(lasting)


def test_damaged_tokens_are_never_used(tmp_path: Path, url: str, documents: Documents) -> None:
    put = documents.put(NAMESPACE, TOKENS)
    blob = next(path for path in (tmp_path / "states" / "blobs").rglob("*") if path.is_file())
    content = bytearray(blob.read_bytes())
    content[-5] ^= 1
    blob.write_bytes(content)
    with open_store(url) as other:
        elsewhere = Documents(other, ByteTokenizer())
        assert refusal(elsewhere, put.id).status in (404, 503)
        assert refusal(elsewhere, put.id).status == 404  # quarantined
        assert elsewhere.put(NAMESPACE, TOKENS).id == put.id
        assert Documents(other, ByteTokenizer()).tokens(NAMESPACE, put.id).tolist() == TOKENS


def test_a_store_that_is_down(store: StateStore) -> None:
    faulty = Faulty(store.backend)
    broken = StateStore(faulty)
    documents = Documents(broken, ByteTokenizer())
    put = documents.put(NAMESPACE, TOKENS)
    forgetful = Documents(broken, ByteTokenizer(), remembered_bytes=0)
    faulty.faults = (Fault(("longest", "publish"), Fail(UnavailableError("down"))),)
    assert documents.tokens(NAMESPACE, put.id).tolist() == TOKENS
    assert refusal(forgetful, put.id).status == 503
    assert refusal(forgetful, put.id).retry_after_s
    with pytest.raises(ApiError) as refused:
        forgetful.put(NAMESPACE, [*TOKENS, 1])
    assert refused.value.status == 503


def test_what_is_no_document(documents: Documents) -> None:
    with pytest.raises(InputError):
        documents.put(NAMESPACE, [])
    with pytest.raises(TokenError):
        documents.put(NAMESPACE, [-1])


def test_documents_of_a_namespace_are_bounded(documents: Documents) -> None:
    anna, ben = Namespace("anna"), Namespace("ben")
    text = list(range(1, 101))  # 400 bytes; its entry takes some more
    documents.require_room(anna, text, 400)
    documents.put(anna, text)
    documents.require_room(anna, text, 400)  # it is there
    with pytest.raises(ApiError, match="delete some first") as refused:
        documents.require_room(anna, [*text, 7], 800)
    assert (refused.value.status, refused.value.code) == (413, "documents_full")
    documents.require_room(ben, text, 400)  # another's take nothing from him


def test_what_is_remembered_is_bounded(store: StateStore) -> None:
    documents = Documents(store, ByteTokenizer(), remembered_bytes=3 * 4 * 100)
    ids = [documents.put(NAMESPACE, [i] * 100).id for i in range(10)]
    held = documents._memory._held
    assert [id_ for _, id_ in held] == ids[-3:]
    assert documents.tokens(NAMESPACE, ids[0]).tolist() == [0] * 100
    assert [id_ for _, id_ in held] == [*ids[-2:], ids[0]]
