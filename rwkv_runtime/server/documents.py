"""Documents that were read once and are asked about by their id, through any worker.

A document's state is kept like every state, and may be evicted. What is kept here, pinned, is its
tokens: with them a worker finds the state's keys again, and reads the document anew where the state
has gone. They are a named entry of the store, so that its checksums, encryption, tiers and exports
hold for them as well:

    schema "tokens"    one tensor "tokens", I32 [n]
    id                 "doc-" and 64 hex digits of H(tag "document", namespace, salt, tokenizer,
                       vocabulary, tokens): the same document has the same id, and no tenant can
                       tell from an id whether another has read a document
    key                `named_key` of the id, with 0 tokens: nothing is spared by finding it
    fingerprint        H(tag "tokens", tokenizer, vocabulary): tokens outlive the weights

A worker remembers what it used last, for the times when the store does not answer.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Final

import numpy as np
from numpy.typing import NDArray

from rwkv_runtime.server.errors import ApiError
from rwkv_runtime.tokenizer import Tokenizer
from statestore.backends.tiers.backend import Tiered
from statestore.entry import Entry, EntryFilter, Role
from statestore.errors import BackendError, InputError
from statestore.keys import Namespace, StateKey, hashing, named_key, pack_tokens
from statestore.schema import DType, State, Tensor
from statestore.store import Identity, PutOutcome, StateStore

SCHEMA: Final = "tokens"
NAME: Final = "name"  # the label with the name that people gave
ID: Final = "document"
REMEMBERED_BYTES: Final = 64 << 20

TokenArray = NDArray[np.int32]


@dataclass(frozen=True, slots=True)
class Document:
    """What a listing says of one."""

    id: str
    name: str
    n_tokens: int
    created_at: float  # seconds since the epoch
    expires_at: float | None


class Documents:
    """The documents in one store. Safe to use from several threads.

    Args:
        store: keeps the tokens.
        tokenizer: made them.
        remembered_bytes: how much of what was used last is kept in memory.
    """

    def __init__(
        self, store: StateStore, tokenizer: Tokenizer, remembered_bytes: int = REMEMBERED_BYTES
    ) -> None:
        self._store = store
        self._kind = (tokenizer.name.encode(), hashing.u64(tokenizer.vocabulary))
        self._fingerprint = hashing.digest(hashing.tag("tokens"), *self._kind)
        self._memory = _Memory(remembered_bytes)

    def put(
        self, namespace: Namespace, tokens: list[int], name: str = "", ttl_s: float | None = None
    ) -> Document:
        """Keep a document's tokens. One that is there already stays; its name may change.

        Raises:
            InputError: it holds no token, or its name is no text.
            ApiError: 503, the store did not take it.
        """
        packed = pack_tokens(tokens)
        if not packed:
            raise InputError("the document holds no token")
        id_ = self._id(namespace, packed)
        array: TokenArray = np.frombuffer(packed, "<i4")
        tensor = Tensor.of("tokens", DType.I32, (len(tokens),), array)
        key = self._key(namespace, id_)
        outcome = self._store.put(
            Identity(self._fingerprint, namespace.name),
            key,
            State(SCHEMA, (tensor,)),
            token_digest=hashing.digest(hashing.tag("document"), packed),
            role=Role.PROMPT,
            labels={ID: id_, NAME: name} if name else {ID: id_},
            pinned=True,
            ttl_s=ttl_s,
            durable=True,
        )
        if outcome is PutOutcome.DROPPED:
            raise ApiError(503, _NOT_KEPT, code="store_down", retry_after_s=2)
        self._memory.keep((namespace.name, id_), array)
        now = self._store.now()
        expires_at = None if ttl_s is None else now + ttl_s
        fresh = Document(id_, name, len(tokens), now, expires_at)
        if outcome is PutOutcome.PRESENT:
            return self._present(key, fresh)
        return fresh

    def require_room(self, namespace: Namespace, tokens: list[int], limit_bytes: int) -> None:
        """Documents are pinned: without a bound one tenant's would leave no room for any state.

        Raises:
            ApiError: 413, `tokens` and what is pinned in the namespace come to more.
            BackendError: the store does not answer.
        """
        packed = pack_tokens(tokens)
        if self._entry(self._key(namespace, self._id(namespace, packed))) is not None:
            return
        pinned = self._store.usage(namespace.name).pinned_bytes
        if pinned + len(packed) > limit_bytes:
            raise ApiError(
                413,
                f"documents and other pinned states of this namespace take {pinned} bytes of "
                f"{limit_bytes}, and this one would take {len(packed)}: delete some first",
                code="documents_full",
            )

    def tokens(self, namespace: Namespace, id_: str) -> TokenArray:
        """A document's tokens, int32 [n].

        Raises:
            ApiError: 404, there is no such document; 503, the store does not answer and this worker
                has not used the document lately.
        """
        key = self._key(namespace, id_)
        memory_key = (namespace.name, id_)
        try:
            if self._entry(key) is None:
                self._memory.forget(memory_key)
                raise missing(id_)
        except BackendError:
            pass  # another tier may have it, or this process
        remembered = self._memory.get(memory_key)
        return self._load(namespace, id_, key) if remembered is None else remembered

    def list(self, namespace: Namespace) -> Iterator[Document]:
        """Those of a namespace, newest use first."""
        where = EntryFilter(namespace=namespace.name, fingerprint=self._fingerprint)
        now = self._store.now()
        for entry in self._store.list(where):
            if entry.expires_at is None or entry.expires_at > now:
                yield _document(entry)

    def get(self, namespace: Namespace, id_: str) -> Document:
        """One by its id.

        Raises:
            ApiError: 404.
            BackendError: the store does not answer.
        """
        entry = self._entry(self._key(namespace, id_))
        if entry is None:
            raise missing(id_)
        return _document(entry)

    def delete(self, namespace: Namespace, id_: str) -> None:
        """Remove one; its states are the caller's to remove.

        Raises:
            ApiError: 404.
            BackendError: the store does not answer.
        """
        self._memory.forget((namespace.name, id_))
        if not self._store.delete(self._key(namespace, id_)):
            raise missing(id_)

    def _present(self, key: StateKey, fresh: Document) -> Document:
        """The document that was there first. It takes the new name, and the later of the two
        expiries.
        """
        entry = self._entry(key)
        if entry is None:
            return fresh
        found = _document(entry)
        name = fresh.name or found.name
        expires_at = found.expires_at
        if expires_at is not None:  # an entry cannot be made to last for ever; a century is as good
            wanted = fresh.expires_at or self._store.now() + _CENTURY_S
            expires_at = max(expires_at, wanted)
        present = replace(found, name=name, expires_at=expires_at)
        if present != found:
            self._store.update(key, labels={ID: found.id, NAME: name}, expires_at=expires_at)
        return present

    def _entry(self, key: StateKey) -> Entry | None:
        """The document's entry; of tiers the last one decides, as other processes' memory may hold
        what was deleted.
        """
        backend = self._store.backend
        place = backend.home if isinstance(backend, Tiered) else backend
        return place.longest([key], self._store.now())

    def _load(self, namespace: Namespace, id_: str, key: StateKey) -> TokenArray:
        whose = Identity(self._fingerprint, namespace.name)
        found = self._store.find(whose, [key], touch=False, tally=False)  # it is no prompt's
        if found is None:
            raise _down(f"document {id_} cannot be read")
        array = _array(found.state)
        if array is None or self._id(namespace, pack_tokens(array)) != id_:
            self._store.reject(found.entry, "StateError: these are no tokens of this document")
            raise missing(id_)
        self._memory.keep((namespace.name, id_), array)
        return array

    def _id(self, namespace: Namespace, packed: bytes) -> str:
        digest = hashing.digest(
            hashing.tag("document"), namespace.name.encode(), namespace.salt, *self._kind, packed
        )
        return f"doc-{digest.hex()}"

    def _key(self, namespace: Namespace, id_: str) -> StateKey:
        return named_key(namespace, id_, self._fingerprint, 0)


_CENTURY_S: Final = 100 * 365 * 86400.0
_NOT_KEPT: Final = "the document was not kept: the store is down or full; try again"


class _Memory:
    """Tokens by namespace and id, the last used `limit` bytes of them."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._held: OrderedDict[tuple[str, str], TokenArray] = OrderedDict()
        self._bytes = 0
        self._lock = threading.Lock()

    def get(self, key: tuple[str, str]) -> TokenArray | None:
        with self._lock:
            if key in self._held:
                self._held.move_to_end(key)
            return self._held.get(key)

    def keep(self, key: tuple[str, str], tokens: TokenArray) -> None:
        with self._lock:
            self._drop(key)
            self._held[key] = tokens
            self._bytes += tokens.nbytes
            while self._bytes > self._limit:
                self._drop(next(iter(self._held)))

    def forget(self, key: tuple[str, str]) -> None:
        with self._lock:
            self._drop(key)

    def _drop(self, key: tuple[str, str]) -> None:
        dropped = self._held.pop(key, None)
        if dropped is not None:
            self._bytes -= dropped.nbytes


def missing(id_: str) -> ApiError:
    """404: what to do about it."""
    return ApiError(
        404, f"document {id_} is not here: PUT /v1/documents first", "documents", "unknown_document"
    )


def _down(what: str) -> ApiError:
    return ApiError(
        503, f"{what}: the store does not answer; try again", code="store_down", retry_after_s=2
    )


def _document(entry: Entry) -> Document:
    labels = entry.labels
    return Document(
        labels.get(ID, ""),
        labels.get(NAME, ""),
        entry.state_bytes // DType.I32.itemsize,
        entry.created_at,
        entry.expires_at,
    )


def _array(state: State) -> TokenArray | None:
    """The tokens in an entry, which anybody may have written; ``None``: it holds none."""
    if state.schema_id != SCHEMA or len(state.tensors) != 1:
        return None
    tensor = state.tensors[0]
    if tensor.spec.dtype is not DType.I32 or len(tensor.spec.shape) != 1:
        return None
    array: TokenArray = np.frombuffer(tensor.data, "<i4")
    return None if array.size and int(array.min()) < 0 else array
