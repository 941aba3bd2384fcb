"""A backend that others can read, and that keeps nothing they could use: containers are sealed on
the way in and opened on the way out.

What is read and not sealed is refused, since anybody could have written it, and so is what was
changed; both are taken down as damaged blobs are. What is sealed with a key that is not here is a
miss and stays (`LockedError`). Entries are not encrypted: keys of states, lengths, times, labels.
"""

from __future__ import annotations

from dataclasses import replace

from statestore.backends.base import Backend, Blob
from statestore.backends.wrapper import Wrapper
from statestore.codec.sealing import require_cryptography, seal, unseal
from statestore.entry import Entry
from statestore.errors import BackendError, ContainerError
from statestore.keyring import Keyring

OPTIONS = ("keys",)


class Encrypted(Wrapper):
    """`inner`, with containers that only `keys` open.

    Raises `SettingsError` where the package ``cryptography`` is missing.
    """

    def __init__(self, inner: Backend, keys: Keyring) -> None:
        super().__init__(inner)
        require_cryptography()
        self._keys = keys

    def read(self, entry: Entry) -> memoryview | None:
        """As the port says, opened.

        Raises:
            LockedError: the key is not here.
            ContainerError: what lies there is not sealed, is damaged, or was changed.
        """
        blob = self.inner.read(entry)
        return None if blob is None else unseal(blob, self._keys)

    def publish(self, entry: Entry, blob: Blob, *, durable: bool = False) -> bool:
        """As the port says; the entry's `blob_bytes` are those of the sealed container.

        Raises `BackendError` for bytes that are no container: they do not leave here clear.
        """
        try:
            sealed = seal(blob, self._keys.first)
        except ContainerError as error:
            raise BackendError(f"not stored, since it cannot be encrypted: {error}") from error
        entry = replace(entry, blob_bytes=sum(len(part) for part in sealed))
        return self.inner.publish(entry, sealed, durable=durable)
