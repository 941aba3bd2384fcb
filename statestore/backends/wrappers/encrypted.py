"""A backend that others can read, and that keeps nothing they could use: containers are sealed on
the way in and opened on the way out.

What is read and not sealed is refused, since anybody could have written it, and so is what was
changed; both are taken down as damaged blobs are. What is sealed with a key that is not here is a
miss (`LockedError`). It stays for whoever has that key, until a state that was computed here in its
stead is put: that one takes its place, else a key that is lost would bar the state for ever.
Entries are not encrypted: keys of states, lengths, times, labels.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import replace
from typing import Final

from statestore.backends.base import Backend, Blob
from statestore.backends.wrapper import Wrapper
from statestore.codec import read_header
from statestore.codec.sealing import require_cryptography, seal, unseal
from statestore.entry import Entry
from statestore.errors import BackendError, ContainerError, LockedError
from statestore.keyring import Keyring
from statestore.keys import StateKey

OPTIONS = ("keys",)

_REMEMBERED: Final = 4096  # locked states that were met here


class Encrypted(Wrapper):
    """`inner`, with containers that only `keys` open.

    Raises `SettingsError` where the package ``cryptography`` is missing.
    """

    def __init__(self, inner: Backend, keys: Keyring) -> None:
        super().__init__(inner)
        require_cryptography()
        self._keys = keys
        self._locked: OrderedDict[StateKey, Entry] = OrderedDict()

    def read(self, entry: Entry) -> memoryview | None:
        """As the port says, opened.

        Raises:
            LockedError: the key is not here.
            ContainerError: what lies there is not sealed, is damaged, or was changed.
        """
        blob = self.inner.read(entry)
        try:
            return None if blob is None else unseal(blob, self._keys)
        except LockedError:
            self._locked[entry.key] = entry
            if len(self._locked) > _REMEMBERED:
                self._locked.popitem(last=False)
            raise

    def publish(self, entry: Entry, blob: Blob, *, durable: bool = False) -> bool:
        """As the port says; the entry's `blob_bytes` are those of the sealed container.

        What comes encrypted with one of the keys stays as it is. Raises `BackendError` for bytes
        that are no container, or that no key here opens: they do not leave here clear.
        """
        try:
            sealed = self._sealed(blob)
        except ContainerError as error:
            raise BackendError(f"not stored, since it cannot be encrypted: {error}") from error
        entry = replace(entry, blob_bytes=sum(len(part) for part in sealed))
        locked = self._locked.pop(entry.key, None)
        if locked is not None:
            self.inner.delete(entry.key, "locked", blob=locked.blob)
            entry = replace(entry, pinned=entry.pinned or locked.pinned)
        return self.inner.publish(entry, sealed, durable=durable)

    def _sealed(self, blob: Blob) -> Blob:
        whole = blob[0] if len(blob) == 1 else b"".join(blob)
        if read_header(whole).seal is None:
            return seal([whole], self._keys.first)
        unseal(whole, self._keys)
        return [whole]
