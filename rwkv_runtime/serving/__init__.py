"""Many requests at once over one runtime: continuous batching, without a network in sight.

>>> streams = Streams(runtime, width=32)  # doctest: +SKIP
>>> ticket = streams.submit(Request([prompt_tokens]), print)  # doctest: +SKIP
"""

from __future__ import annotations

from rwkv_runtime.serving.events import (
    Ended,
    Event,
    Failed,
    Load,
    OnEvent,
    Piece,
    Request,
    Started,
)
from rwkv_runtime.serving.streams import Streams
from rwkv_runtime.serving.ticket import Ticket

__all__ = [
    "Ended",
    "Event",
    "Failed",
    "Load",
    "OnEvent",
    "Piece",
    "Request",
    "Started",
    "Streams",
    "Ticket",
]
