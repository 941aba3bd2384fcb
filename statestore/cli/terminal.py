"""What the terminal of a command can show."""

from __future__ import annotations

import os
from typing import Final

_DUMB: Final = ("dumb", "unknown")  # TERM of what prints lines and knows no escapes


def is_dumb() -> bool:
    """Whether it moves no cursor and has no colours, as far as it says."""
    return os.environ.get("TERM", "").lower() in _DUMB


def is_plain() -> bool:
    """Whether there shall be no colours: it has none, or its user wants none."""
    return is_dumb() or bool(os.environ.get("NO_COLOR"))
