"""The runtime's errors: further leaves of the storage layer's tree.

    StateStoreError                     1
    ├── NumericsError                       logits of NaN or infinity, or bits of another precision
    ├── BusyError                           as many requests wait as may: later
    └── InputError (ValueError)         2
        ├── WeightsError                    a file that this engine cannot run
        ├── TokenizerError                  text, and no tokenizer that fits
        ├── DeviceError                     a device, dtype or thread count not to be had
        ├── SamplingError                   sampling settings that mean nothing
        └── TokenError
            └── VocabularyError             a token id that the model does not have

The number is the exit code of a command that ends with that error; a child without a number has its
parent's.
"""

from __future__ import annotations

from statestore.errors import InputError, StateStoreError, TokenError


class NumericsError(StateStoreError):
    """The model's logits hold NaN or infinity: weights or dtype do not suit each other. Or the
    program told PyTorch to compute otherwise than when the model was loaded.
    """


class BusyError(StateStoreError):
    """As many requests wait as may; `retry_after_s` says when another try is worth it."""

    def __init__(self, message: str, retry_after_s: float) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class WeightsError(InputError):
    """The file is not a weights file that this engine can run."""


class TokenizerError(InputError):
    """Text was given or wanted, and no tokenizer fits."""


class DeviceError(InputError):
    """The device, the dtype or the number of threads is not to be had on this machine."""


class SamplingError(InputError):
    """The sampling settings mean nothing."""


class VocabularyError(TokenError):
    """A token id that the model does not have."""
