"""Choosing between "raw" and "lossless" for one place, from how fast the place and the codec are.

A request waits for a read and never for a write, so reads count in full and writes a little:

    seconds a byte of state = stored / read speed + 1 / decode speed
                              + WRITES * (stored / write speed + 1 / encode speed)

with stored = 1 for raw, whose coding costs next to nothing. Since lossless also saves room, raw has
to be faster by `MARGIN`. What is not measured yet counts as slow places do: lossless.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass

from statestore.codec.container import CodecName

WRITES = 0.1  # what a second of a write counts beside one of a read
MARGIN = 1.05
LEAST_BYTES = 1 << 16  # 64 KiB: the time of smaller transfers says nothing of speed
_KEPT = 0.9  # of what was measured before, at each new measurement


@dataclass(frozen=True, slots=True)
class Speeds:
    """Bytes per second; ``None``: not measured."""

    read: float | None = None
    write: float | None = None
    decode: float = 3e9  # of the state's bytes, lossless; as measured on two cores
    encode: float = 1.5e9
    ratio: float = 0.86  # lossless bytes of a byte of state


_UNMEASURED = Speeds()


def faster(speeds: Speeds) -> CodecName:
    """The codec that costs less time at a place with these speeds. Pure."""
    if speeds.read is None:
        return "lossless"
    raw = 1 / speeds.read
    lossless = speeds.ratio / speeds.read + 1 / speeds.decode
    if speeds.write is not None:
        raw += WRITES / speeds.write
        lossless += WRITES * (speeds.ratio / speeds.write + 1 / speeds.encode)
    return "raw" if raw * MARGIN < lossless else "lossless"


class AutoCodec:
    """Measures as it runs, and chooses. One for each place; safe for threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._read, self._write = _Rate(), _Rate()
        self._decode, self._encode = _Rate(), _Rate()
        self._ratio = _UNMEASURED.ratio

    @property
    def speeds(self) -> Speeds:
        """What is known now."""
        with self._lock:
            decode, encode = self._decode.per_s, self._encode.per_s
            return Speeds(
                self._read.per_s,
                self._write.per_s,
                _UNMEASURED.decode if decode is None else decode,
                _UNMEASURED.encode if encode is None else encode,
                self._ratio,
            )

    @property
    def knows_codec(self) -> bool:
        """Whether lossless was measured in this process."""
        return self._decode.per_s is not None

    def choose(self) -> CodecName:
        """What to encode the next state with."""
        return faster(self.speeds)

    def note_read(self, size: int, seconds: float) -> None:
        """A blob of `size` bytes took this long to read."""
        with self._lock:
            self._read.note(size, seconds)

    def note_write(self, size: int, seconds: float) -> None:
        """A blob of `size` bytes took this long to write."""
        with self._lock:
            self._write.note(size, seconds)

    def note_codec(
        self, state_bytes: int, stored_bytes: int, encode_s: float, decode_s: float
    ) -> None:
        """A state was encoded losslessly, and decoded again to know how long that takes."""
        with self._lock:
            self._encode.note(state_bytes, encode_s)
            self._decode.note(state_bytes, decode_s)
            if state_bytes >= LEAST_BYTES:
                self._ratio = stored_bytes / state_bytes


class _Rate:
    """Bytes per second over the last measurements, larger ones counting more."""

    def __init__(self) -> None:
        self._bytes = 0.0
        self._seconds = 0.0

    @property
    def per_s(self) -> float | None:
        return self._bytes / self._seconds if self._seconds else None

    def note(self, size: int, seconds: float) -> None:
        if size >= LEAST_BYTES and seconds > 0:
            self._bytes = self._bytes * _KEPT + size
            self._seconds = self._seconds * _KEPT + seconds
