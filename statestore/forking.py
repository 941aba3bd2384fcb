"""What begins anew in a forked child, where only the thread that forked goes on: whatever else had
a thread has none, and a lock may be held by a thread that is not there.
"""

from __future__ import annotations

import logging
import os
import weakref
from typing import Protocol

log = logging.getLogger(__name__)


class Renewable(Protocol):
    """Something with threads or locks."""

    def renew(self) -> None:
        """Forget what is the parent's, and make new locks. Nothing else runs meanwhile."""


def renew_in_child(thing: Renewable) -> None:
    """Have `thing` renewed in every forked child, for as long as it lives."""
    _things.add(thing)


_things: weakref.WeakSet[Renewable] = weakref.WeakSet()


def _renew_all() -> None:
    for thing in list(_things):
        try:
            thing.renew()
        except Exception:  # whatever it is: the others must not be left with locks that are held
            log.exception("a forked child goes on with something of its parent's")


os.register_at_fork(after_in_child=_renew_all)
