"""`GET /`: the page, from files of this package. It asks its own server and nobody else, and the
policy that goes with it says so to the browser.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

from starlette.responses import FileResponse, Response
from starlette.staticfiles import StaticFiles
from starlette.types import Scope

DIRECTORY: Final = Path(__file__).with_name("page")

_HEADERS: Final = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self' "
    "'unsafe-inline'; img-src 'self' data:; connect-src 'self'; base-uri 'none'; "
    "form-action 'none'; frame-ancestors 'none'",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cache-Control": "no-cache",
}


class Page(StaticFiles):
    """The page's files, `index.html` for the directory."""

    def __init__(self) -> None:
        super().__init__(directory=DIRECTORY, html=True)

    async def get_response(self, path: str, scope: Scope) -> Response:
        """A file, with the headers that every file of the page has."""
        response = await super().get_response(path, scope)
        if isinstance(response, FileResponse):
            response.headers.update(_HEADERS)
        return response
