"""How engines of PyTorch run: without gradients, on their own number of threads, and in the
precision that they were loaded for, whatever the program around them tells PyTorch.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import torch

from rwkv_runtime.engines.switches import settings
from rwkv_runtime.errors import NumericsError

_DEVICES = ("cpu", "cuda")


class Computing:
    """The conditions of one engine's computing. Made where its fingerprint is.

    Args:
        threads: that torch computes with; ``None`` leaves its setting.
        device: "cpu", or "cuda".
        settled: whether torch's settings decide the engine's bits.
    """

    def __init__(self, threads: int | None, device: str, *, settled: bool = True) -> None:
        self.threads = threads
        self._device = device
        self._settings = settings(device) if settled else None

    @contextmanager
    def __call__(self) -> Iterator[None]:
        """Inside, torch computes as the fingerprint says.

        Raises:
            NumericsError: a setting of the process, which is not ours to put back under other
                threads, was changed since: the states would have other bits than their keys say.
        """
        if self._settings is not None and settings(self._device) != self._settings:
            raise NumericsError(_changed(self._settings, settings(self._device)))
        # torch keeps the number per calling thread, so setting it once at load would not do.
        if self.threads is not None and torch.get_num_threads() != self.threads:
            torch.set_num_threads(self.threads)
        with ExitStack() as stack:
            for device in _DEVICES:
                if torch.is_autocast_enabled(device):
                    stack.enter_context(torch.autocast(device, enabled=False))
            stack.enter_context(torch.inference_mode())
            yield


def _changed(before: tuple[tuple[str, str], ...], now: tuple[tuple[str, str], ...]) -> str:
    name = next(name for name, _ in {*before} ^ {*now})
    was, is_ = (dict(pairs).get(name, "as usual") for pairs in (before, now))
    return (
        f"torch's setting {name} is {is_}, and was {was} when the model was loaded: its states "
        "would not have the bits that their keys stand for; set it back, or set it before loading"
    )
