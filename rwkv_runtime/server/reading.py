"""`PUT /v1/documents`: read a document once; `GET` and `DELETE`: look after those that were read.

PUT /v1/documents            JSON {"text": ..., "name": ..., "ttl": ...}, or the text as it is
                             with ?name=...&ttl=...: {"id": "doc-...", "tokens": ..., ...}
GET /v1/documents            those of the key's namespace, newest use first
GET /v1/documents/{id}       one, and how many of its tokens need not be read again
DELETE /v1/documents/{id}    its tokens and its states
"""

from __future__ import annotations

import re
import threading
from itertools import dropwhile, islice
from typing import Final

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from rwkv_runtime.server.answering import GONE, unless_gone
from rwkv_runtime.server.bodies import media_type
from rwkv_runtime.server.documents import Document
from rwkv_runtime.server.errors import ApiError, invalid
from rwkv_runtime.server.instruments import Stopwatch
from rwkv_runtime.server.schemas import DocumentRequest, parse
from rwkv_runtime.server.service import Service
from rwkv_runtime.server.shapes import Json
from rwkv_runtime.session import Prefill
from statestore.keys import Namespace, Tokens

LISTED: Final = 100
MOST_LISTED: Final = 1000


def routes(service: Service) -> list[Route]:
    """The endpoints over `service`."""

    async def put(request: Request) -> ASGIApp:
        namespace = service.namespace(request)
        limit = service.settings.max_document_bytes
        async with service.bodies.read(request, limit) as body:
            asked = await service.quickly(_asked, request, body)
            service.check_model(asked.model)
            tokens = await service.quickly(_tokens, service, asked)
        return _Reading(service, namespace, asked, tokens)

    async def listing(request: Request) -> Response:
        namespace = service.namespace(request)
        return JSONResponse(await service.aside(_list, service, namespace, request))

    async def one(request: Request) -> Response:
        namespace, id_ = service.namespace(request), request.path_params["id"]
        return JSONResponse(await service.quickly(_one, service, namespace, id_))

    async def delete(request: Request) -> Response:
        namespace, id_ = service.namespace(request), request.path_params["id"]
        return JSONResponse(await service.aside(_delete, service, namespace, id_))

    return [
        Route("/v1/documents", put, methods=["PUT"]),
        Route("/v1/documents", listing),
        Route("/v1/documents/{id}", one),
        Route("/v1/documents/{id}", delete, methods=["DELETE"]),
    ]


class _Reading:
    """Reads a document while its client waits; stops between two chunks when the client goes."""

    def __init__(
        self, service: Service, namespace: Namespace, asked: DocumentRequest, tokens: list[int]
    ) -> None:
        self._service = service
        self._namespace = namespace
        self._asked = asked
        self._tokens = tokens
        self._gone = threading.Event()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            if not await unless_gone(receive, self._answer(scope, receive, send)):
                scope["answered"] = GONE
        finally:
            self._gone.set()

    async def _answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        watch = Stopwatch()
        await self._service.aside(  # totals have no deadline
            self._service.documents.require_room,
            self._namespace,
            self._tokens,
            self._service.settings.max_documents_bytes,
        )
        document = await self._service.quickly(
            self._service.documents.put,
            self._namespace,
            self._tokens,
            self._asked.name or "",
            self._asked.ttl,
        )
        prefill = await self._service.slowly(
            self._service.streams.read, [self._tokens], self._namespace, self._progress
        )
        self._count(prefill)
        body = {
            **_described(document),
            "cached": prefill.cached_tokens,
            "computed": prefill.computed_tokens,
            "seconds": round(watch.seconds, 6),
        }
        await JSONResponse(body)(scope, receive, send)

    def _progress(self, done: int, whole: int) -> None:  # noqa: ARG002 - as `Progress` wants
        if self._gone.is_set():
            raise ApiError(GONE, "the client went away")

    def _count(self, prefill: Prefill) -> None:
        counter = self._service.instruments.prompt_tokens
        counter.labels(self._namespace.name, "cached").inc(prefill.cached_tokens)
        counter.labels(self._namespace.name, "computed").inc(prefill.computed_tokens)


def _asked(request: Request, body: bytes) -> DocumentRequest:
    if media_type(request) == "application/json":
        asked = parse(DocumentRequest, body)
        if (asked.text is None) == (asked.input is None):
            raise invalid("text", "give the document as text or as input: one of them")
        return asked
    fields: dict[str, object] = {"text": _text(body), "name": request.query_params.get("name")}
    if "ttl" in request.query_params:
        try:
            fields["ttl"] = float(request.query_params["ttl"])
        except ValueError:
            raise invalid("ttl", "ttl: a number of seconds is expected") from None
    return parse(DocumentRequest, fields)


def _text(body: bytes) -> str:
    try:
        return body.decode()
    except UnicodeDecodeError as error:
        raise invalid("text", f"byte {error.start} of the document is not UTF-8") from None


def _tokens(service: Service, asked: DocumentRequest) -> list[int]:
    given = asked.text if asked.input is None else asked.input
    if not given:
        raise invalid("text", "the document is empty")
    tokens = service.prompts.tokenizer.encode(given) if isinstance(given, str) else given
    vocabulary = service.runtime.engine.vocabulary
    if min(tokens) < 0 or max(tokens) >= vocabulary:
        raise invalid("input", f"input: token ids are 0 to {vocabulary - 1}")
    return tokens


def _list(service: Service, namespace: Namespace, request: Request) -> Json:
    limit = request.query_params.get("limit", str(LISTED))
    if not re.fullmatch(r"[0-9]{1,4}", limit) or not 1 <= int(limit) <= MOST_LISTED:
        raise invalid("limit", f"limit: 1 to {MOST_LISTED} is expected")
    documents = service.documents.list(namespace)
    after = request.query_params.get("after")
    if after is not None:
        documents = islice(dropwhile(lambda each: each.id != after, documents), 1, None)
    page = list(islice(documents, int(limit) + 1))
    shown = [_described(document) for document in page[: int(limit)]]
    return {"object": "list", "data": shown, "has_more": len(page) > int(limit)}


def _one(service: Service, namespace: Namespace, id_: str) -> Json:
    document = service.documents.get(namespace, id_)
    plan = service.runtime.session.within(namespace).plan(_segments(service, namespace, id_))
    found = service.store.backend.longest(plan.keys_deepest_first, service.store.now())
    return {**_described(document), "cached": 0 if found is None else found.key.n_tokens}


def _delete(service: Service, namespace: Namespace, id_: str) -> Json:
    """First the tokens, since without them only those who have the text find a state. Then every
    state along the document, those between two boundaries too, where another document parts from
    it.
    """
    plan = service.runtime.session.within(namespace).plan(_segments(service, namespace, id_))
    service.documents.delete(namespace, id_)
    for boundary in plan.boundaries:
        service.store.delete(boundary.key)
    keys = plan.keys_deepest_first
    while (found := service.store.backend.longest(keys, service.store.now())) is not None:
        service.store.delete(found.key)
        keys = keys[keys.index(found.key) + 1 :]
    return {"id": id_, "object": "document.deleted", "deleted": True}


def _segments(service: Service, namespace: Namespace, id_: str) -> list[Tokens]:
    return [service.documents.tokens(namespace, id_)]


def _described(document: Document) -> Json:
    return {
        "id": document.id,
        "object": "document",
        "name": document.name,
        "tokens": document.n_tokens,
        "created_at": int(document.created_at),
        "expires_at": None if document.expires_at is None else int(document.expires_at),
    }
