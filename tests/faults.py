"""A backend that fails on command, around a real one."""

from __future__ import annotations

from typing import Any

from statestore.backends.base import Backend
from statestore.errors import BackendError

OPERATIONS = ("longest", "read", "publish", "touch", "update")


class FaultyBackend:
    """Raises `error` in the operations that `failing` names; passes everything else on."""

    def __init__(self, inner: Backend, error: BackendError, failing: set[str]) -> None:
        self.inner = inner
        self.error = error
        self.failing = failing
        self.raised = 0

    def __getattr__(self, name: str) -> Any:
        if name in self.failing:
            return self._fail
        return getattr(self.inner, name)

    def _fail(self, *args: object, **kwargs: object) -> Any:
        self.raised += 1
        raise self.error
