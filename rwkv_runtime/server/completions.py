"""`POST /v1/completions` and `POST /v1/chat/completions`, `GET /v1/models`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, TypeVar

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp

from rwkv_runtime.server.answering import Answer
from rwkv_runtime.server.bodies import require_json
from rwkv_runtime.server.instruments import Stopwatch
from rwkv_runtime.server.schemas import ChatRequest, CompletionRequest, Sampled, parse
from rwkv_runtime.server.service import Service
from rwkv_runtime.server.shapes import Json, Shape
from rwkv_runtime.serving.events import Request as Asked
from statestore.keys import Namespace

R = TypeVar("R", bound=Sampled)

#: Bodies of this size and more are parsed beside the event loop: others' streams go on meanwhile.
LARGE_BYTES: Final = 64 << 10


def routes(service: Service) -> list[Route]:
    """The endpoints over `service`."""

    async def completions(request: Request) -> ASGIApp:
        return await _answer(service, request, CompletionRequest, service.prompts.completion)

    async def chat(request: Request) -> ASGIApp:
        return await _answer(service, request, ChatRequest, service.prompts.chat)

    async def models(request: Request) -> Response:
        service.namespace(request)
        return JSONResponse({"object": "list", "data": [_model(service)]})

    async def model(request: Request) -> Response:
        service.namespace(request)
        service.check_model(request.path_params["name"])
        return JSONResponse(_model(service))

    return [
        Route("/v1/completions", completions, methods=["POST"]),
        Route("/v1/chat/completions", chat, methods=["POST"]),
        Route("/v1/models", models),
        Route("/v1/models/{name:path}", model),
    ]


async def _answer(
    service: Service,
    request: Request,
    kind: type[R],
    asked_of: Callable[[R, Namespace], Asked],
) -> Answer:
    watch = Stopwatch()
    namespace = service.namespace(request)
    require_json(request)
    async with service.bodies.read(request, service.settings.max_body_bytes) as body:
        if len(body) < LARGE_BYTES:
            parsed = parse(kind, body)
        else:
            parsed = await service.quickly(parse, kind, body)
        service.check_model(parsed.model)
        asked = await service.quickly(asked_of, parsed, namespace)
    relay = service.hub.relay()
    ticket = service.streams.submit(asked, relay.push)
    return Answer(
        relay,
        ticket,
        Shape(service.model_name, service.fingerprint, kind is ChatRequest),
        stream=bool(parsed.stream),
        usage=parsed.usage_wanted,
        watch=watch,
        instruments=service.instruments,
        namespace=namespace.name,
    )


def _model(service: Service) -> Json:
    return {
        "id": service.model_name,
        "object": "model",
        "created": service.created,
        "owned_by": "rwkv-statestore",
    }
