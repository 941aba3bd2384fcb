"""Every error that the storage layer raises, in one tree.

    StateStoreError                     1   anything below
    ├── InputError (ValueError)         2   the caller's mistake: mend the call
    │   ├── TokenError                      not integers, or outside 0..2**32-1
    │   ├── PromptError                     an empty prompt
    │   ├── StateError                      tensors that do not fit their schema
    │   ├── SettingsError                   a URL or a setting that means nothing
    │   └── NotFoundError (KeyError)    5   a key, named by a person, that is not stored
    ├── ContainerError                  3   bytes that are no sound container: never used
    │   ├── NotAContainerError              the magic is missing
    │   ├── UnsupportedVersionError         a format version or codec that this release lacks
    │   ├── TruncatedError                  shorter than its header says
    │   ├── CorruptError                    a checksum does not match, or a disk gives no bytes back
    │   ├── LayoutError                     holes, overlaps, trailing bytes, sizes that disagree
    │   ├── LimitError                      larger than the reader allows
    │   ├── ForeignError                    sound, but of another key, fingerprint or namespace
    │   └── LockedError                     encrypted with a key that is not here: not damaged
    └── BackendError                    4   the place that keeps states failed: the operator acts
        ├── UnavailableError                down, slow or refused; a retry may help
        │   └── BusyError                       it answers: others held it for a moment too long
        ├── FullError                       no space left
        ├── SchemaVersionError              the catalog's tables are of another release
        └── ClosedError                     used after close()

A miss is ``None``, never an error. The number is the exit code of a command that ends with that
error; a child without a number has its parent's.
"""

from __future__ import annotations

from typing import ClassVar


class StateStoreError(Exception):
    """Root of the tree."""

    exit_code: ClassVar[int] = 1


class InputError(StateStoreError, ValueError):
    """The caller passed something that can never work."""

    exit_code = 2


class TokenError(InputError):
    """Token ids are not integers, or lie outside 0..2**32-1."""


class PromptError(InputError):
    """The prompt holds no token."""


class StateError(InputError):
    """Tensors do not fit their schema."""


class SettingsError(InputError):
    """A URL or a setting is malformed."""


class NotFoundError(InputError, KeyError):
    """A key that a person named is not stored."""

    exit_code = 5

    def __str__(self) -> str:  # KeyError would show the repr
        return str(self.args[0]) if self.args else ""


class ContainerError(StateStoreError):
    """Bytes are not a sound container. They are never used."""

    exit_code = 3


class NotAContainerError(ContainerError):
    """The magic is missing: these bytes are something else."""


class UnsupportedVersionError(ContainerError):
    """The format version or a codec is not known to this release."""


class TruncatedError(ContainerError):
    """Fewer bytes than the header promises."""


class CorruptError(ContainerError):
    """A checksum does not match its bytes, or the disk does not give them back."""


class LayoutError(ContainerError):
    """Frames leave holes, overlap, trail, or disagree with the tensors."""


class LimitError(ContainerError):
    """A size is beyond what the reader allows; nothing was allocated."""


class ForeignError(ContainerError):
    """A sound container, but of another key, fingerprint or namespace."""


class LockedError(ContainerError):
    """A container is encrypted, and its key is not at hand. Others may have it: it stays."""


class BackendError(StateStoreError):
    """The place that keeps states failed."""

    exit_code = 4


class UnavailableError(BackendError):
    """The backend is down, too slow, or refused; a later try may succeed."""


class BusyError(UnavailableError):
    """Others held what a call that waits for a moment only wanted. The backend is well."""


class FullError(BackendError):
    """The backend has no space left."""


class SchemaVersionError(BackendError):
    """The catalog's tables belong to an older or a newer release."""


class ClosedError(BackendError):
    """The store was closed before this call."""
