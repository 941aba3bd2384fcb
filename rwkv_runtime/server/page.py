"""`GET /`: the page, from files of this package. It asks its own server and nobody else, and the
policy that goes with it says so to the browser.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import FileResponse, Response
from starlette.routing import Route

DIRECTORY: Final = Path(__file__).with_name("page")
INDEX: Final = "index.html"

_HEADERS: Final = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self' "
    "'unsafe-inline'; img-src 'self' data:; connect-src 'self'; base-uri 'none'; "
    "form-action 'none'; frame-ancestors 'none'",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "X-Content-Type-Options": "nosniff",
    "Cache-Control": "no-cache",
}


def routes() -> list[Route]:
    """The page and the files beside it, as they were when the server began."""
    files = {path.name: path for path in DIRECTORY.iterdir() if path.is_file()}

    async def page(request: Request) -> Response:
        path = files.get(request.path_params.get("name", INDEX))
        if path is None:
            raise HTTPException(404)
        return FileResponse(path, headers=_HEADERS)

    return [Route("/", page), Route("/{name}", page)]
