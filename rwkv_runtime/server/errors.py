"""What a request is answered with when it fails: OpenAI's shape, HTTP's status, the field that is
to blame and what to do about it.

    {"error": {"message": "...", "type": "invalid_request_error", "param": "seed", "code": null}}

| status | type | when |
| --- | --- | --- |
| 400 | invalid_request_error | a field that means nothing, or asks for what is not offered |
| 401 | authentication_error | no API key, or one that is not known |
| 404 | not_found_error | a model, document or path that is not there |
| 405, 413, 415 | invalid_request_error | the method, the size or the kind of the body |
| 414, 431 | invalid_request_error | the path and query, or all headers together, are too long |
| 408 | timeout_error | the body does not come |
| 429 | rate_limit_error | all places and the queue are taken; Retry-After says for how long |
| 500 | server_error | a defect, or weights whose logits are no numbers; the log has it |
| 503 | overloaded_error | shutting down, or the store does not have what only it can give |
"""

from __future__ import annotations

import logging
import math
from dataclasses import dataclass
from typing import Final

from rwkv_runtime.errors import BusyError, NumericsError
from statestore.errors import BackendError, ClosedError, InputError

log = logging.getLogger(__name__)

_TYPES = {
    401: "authentication_error",
    404: "not_found_error",
    408: "timeout_error",
    429: "rate_limit_error",
    500: "server_error",
    503: "overloaded_error",
}


_STORE_FAILED: Final = "the store does not answer, or is full; the server's log says which"


@dataclass(eq=False)
class ApiError(Exception):
    """An answer that is an error."""

    status: int
    message: str
    param: str | None = None  # the field that is to blame, as "messages.0.content"
    code: str | None = None
    retry_after_s: float | None = None

    def __str__(self) -> str:
        return self.message

    @property
    def body(self) -> dict[str, object]:
        """For JSON."""
        kind = _TYPES.get(self.status, "invalid_request_error")
        fields = {"message": self.message, "type": kind, "param": self.param, "code": self.code}
        return {"error": fields}

    @property
    def headers(self) -> dict[str, str]:
        """Retry-After in whole seconds, and the scheme that a 401 asks for. The connection closes
        where the rest of a body is not waited for, and where another connection may lead to another
        worker, which has room.
        """
        headers = {"Connection": "close"} if self.status in (408, 413, 429, 503) else {}
        if self.retry_after_s is not None:
            headers["Retry-After"] = str(max(1, math.ceil(self.retry_after_s)))
        if self.status == 401:
            headers["WWW-Authenticate"] = "Bearer"
        return headers


def invalid(param: str | None, message: str, code: str | None = None) -> ApiError:
    """The client's mistake."""
    return ApiError(400, message, param, code)


def api_error(error: Exception) -> ApiError:
    """The answer to a failure from below. A failure that is not the client's goes to the log, and
    the client is told no more than that.
    """
    if isinstance(error, ApiError):
        return error
    if isinstance(error, BusyError):
        return ApiError(429, str(error), code="queue_full", retry_after_s=error.retry_after_s)
    if isinstance(error, ClosedError):
        return ApiError(503, "this worker is shutting down: try again", retry_after_s=1)
    if isinstance(error, InputError):
        return invalid(None, str(error))
    if isinstance(error, BackendError):
        log.info("a request failed for the store: %s", error)  # hosts, users and paths: not theirs
        return ApiError(503, _STORE_FAILED, code="store_down", retry_after_s=1)
    if isinstance(error, NumericsError):
        return ApiError(500, str(error))
    log.error("a request failed: %s", type(error).__name__, exc_info=error)
    return ApiError(500, "the server failed; its log says why")
