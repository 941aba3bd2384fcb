"""A prompt, found in the store or computed, and what is done behind its answer.

session      fetch or compute: the orchestration
reading      one prompt, chunk by chunk, sharing what others compute
forks        where a prompt parts from earlier ones, by what the store has seen
checkpoints  where along a prompt to save
admission    which states are worth it
pace         how fast the engine computes and the store hands out, measured
behind       what a reading leaves to be done behind its answer
keeper       states put into the store, and stops dropped
writer       the thread and the bounded queue for that
"""

from __future__ import annotations

from rwkv_runtime.session.admission import Admission
from rwkv_runtime.session.reading import Bookmark, Progress
from rwkv_runtime.session.session import Prefill, Session

__all__ = ["Admission", "Bookmark", "Prefill", "Progress", "Session"]
