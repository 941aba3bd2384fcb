"""A strategy of the `rwkv` package: where its layers are computed, and in what.

    cpu fp32                          everything in one place
    cuda fp16 *10 -> cpu fp32         ten layers there, the rest here (versions 4 to 6)
    cuda fp16i8 *20+ -> cpu fp32 *1   more than fit there, in int8, brought in as they are needed

Checked ahead of the package, which passes over what it does not know (``fp16i4`` is fp16 to it) and
finds a device missing only while it loads.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final

import torch

from rwkv_runtime.errors import DeviceError

_PART: Final = re.compile(r"(cpu|cuda(?::\d+)?|mps|dml) (fp32|fp16|bf16)(i8)?( \*\d{1,4}\+?)?")
_SEVEN: Final = re.compile(r"(cpu|cuda(?::\d+)?) (fp32|fp16|bf16)")


@dataclass(frozen=True, slots=True)
class Strategy:
    """One that the package computes by."""

    text: str  # as the package takes it
    device: str  # "cuda" where any part is on one, else the first part's
    dtype: str  # of the first part, as it is written

    @classmethod
    def of(cls, written: str, *, seven: bool) -> Strategy:
        """What `written` says, its spaces set right; `seven`: for version 7.

        Raises:
            DeviceError: the package would not understand it, or understand something else; or a
                device of it is not to be had.
        """
        parts = [" ".join(part.split()) for part in written.split("->")]
        for part in parts:
            if not _PART.fullmatch(part):
                raise DeviceError(
                    f"strategy {written!r}: {part!r} is no device and dtype of the rwkv package; "
                    "write 'cpu fp32', or for versions 4 to 6 'cuda fp16 *10 -> cpu fp32'"
                )
        text = " -> ".join(parts)
        if seven and not _SEVEN.fullmatch(text):
            raise DeviceError(
                f"strategy {written!r}: for RWKV-7 the rwkv package knows one device and one of "
                "fp32, fp16 and bf16: 'cpu fp32'"
            )
        devices = [part.split()[0] for part in parts]
        for device in dict.fromkeys(devices):
            _require(device, written)
        kinds = [device.partition(":")[0] for device in devices]
        return cls(text, "cuda" if "cuda" in kinds else kinds[0], parts[0].split()[1])


def _require(device: str, written: str) -> None:
    if device == "dml":  # torch's name for it is another; the package says what is missing
        return
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).split("\n", 1)[0]
        raise DeviceError(
            f"strategy {written!r}: {device} is not to be had here: {reason}"
        ) from error
