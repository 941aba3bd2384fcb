"""What requests may say. A field that is not here is ignored where it cannot change the answer, and
refused by name where it would; OpenAI's own server refuses what it does not know as well.
"""

from __future__ import annotations

from difflib import get_close_matches
from typing import Annotated, Final, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from rwkv_runtime.server.errors import ApiError, invalid

MAX_STOPS: Final = 16
MAX_DOCUMENTS: Final = 64
MAX_MESSAGES: Final = 10_000  # each is parsed, planned, and a chunk of its own from 32 tokens on
DOCUMENT_ID: Final = r"^doc-[0-9a-f]{64}$"

#: Fields of OpenAI's that no answer here depends on.
_HARMLESS: Final = frozenset(
    {
        "metadata", "parallel_tool_calls", "prompt_cache_key", "prompt_cache_retention",
        "safety_identifier", "service_tier", "store", "user",
    }
)  # fmt: skip

#: Fields that would change the answer: the values that ask for nothing, and why others are refused.
_REFUSED: Final[dict[str, tuple[tuple[object, ...], str]]] = {
    "n": ((1,), "one choice per request: send the request again, the prompt is cached"),
    "best_of": ((1,), "one choice per request"),
    "logprobs": ((False, 0), "log probabilities are not offered"),
    "top_logprobs": ((0,), "log probabilities are not offered"),
    "logit_bias": (({},), "biases are not offered"),
    "echo": ((False,), "the prompt is not given back"),
    "suffix": (("",), "text is written after a prompt, not into it"),
    "tools": (([],), "tools are not offered"),
    "tool_choice": (("none", "auto"), "tools are not offered"),
    "functions": (([],), "functions are not offered"),
    "function_call": (("none", "auto"), "functions are not offered"),
    "response_format": (({"type": "text"},), "answers are plain text"),
    "modalities": ((["text"],), "answers are plain text"),
    "audio": ((), "answers are plain text"),
    "prediction": ((), "predicted output is not offered"),
    "reasoning_effort": (("none",), "there is no effort to set"),
    "verbosity": (("medium",), "there is no verbosity to set"),
    "web_search_options": ((), "there is no search"),
    "repetition_penalty": ((1, 1.0), "presence_penalty, frequency_penalty and penalty_decay are"),
}

M = TypeVar("M", bound=BaseModel)


class _Strict(BaseModel):
    model_config = ConfigDict(extra="allow", strict=True, allow_inf_nan=False)


class StreamOptions(_Strict):
    """How a stream is sent."""

    include_usage: bool | None = None
    include_obfuscation: bool | None = None  # there is none


class Sampled(_Strict):
    """What both kinds of completion share. Absent and null are the same."""

    model: str | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    max_tokens: Annotated[int, Field(ge=1)] | None = None
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    top_k: Annotated[int, Field(ge=-1)] | None = None  # 0 and -1: all
    min_p: Annotated[float, Field(ge=0, le=1)] | None = None
    presence_penalty: Annotated[float, Field(ge=-2, le=2)] | None = None
    frequency_penalty: Annotated[float, Field(ge=-2, le=2)] | None = None
    penalty_decay: Annotated[float, Field(ge=0, le=1)] | None = None
    seed: Annotated[int, Field(ge=-(1 << 63), lt=1 << 63)] | None = None  # -1: none
    stop: str | Annotated[list[str], Field(max_length=MAX_STOPS)] | None = None
    cache_salt: Annotated[str, Field(min_length=1, max_length=256)] | None = None
    documents: (
        Annotated[list[Annotated[str, Field(pattern=DOCUMENT_ID)]], Field(max_length=MAX_DOCUMENTS)]
        | None
    ) = None

    @property
    def stops(self) -> tuple[str, ...]:
        """The stop texts."""
        return (self.stop,) if isinstance(self.stop, str) else tuple(self.stop or ())

    @property
    def usage_wanted(self) -> bool:
        """Whether the last chunk of a stream is to tell the tokens."""
        return bool(self.stream_options and self.stream_options.include_usage)


class CompletionRequest(Sampled):
    """`POST /v1/completions`."""

    prompt: str | list[int] | list[str] | list[list[int]]


class TextPart(_Strict):
    """A piece of a message."""

    type: Literal["text"]
    text: str


class ChatMessage(_Strict):
    """One message."""

    role: str
    content: str | list[TextPart] | None = None

    @property
    def text(self) -> str:
        """The content in one piece."""
        if isinstance(self.content, list):
            return "".join(part.text for part in self.content)
        return self.content or ""


class ChatRequest(Sampled):
    """`POST /v1/chat/completions`."""

    messages: Annotated[list[ChatMessage], Field(min_length=1, max_length=MAX_MESSAGES)]
    max_completion_tokens: Annotated[int, Field(ge=1)] | None = None


class DocumentRequest(_Strict):
    """`PUT /v1/documents`: its text, or its token ids as `input`."""

    text: str | None = None
    input: str | list[int] | None = None
    name: Annotated[str, Field(max_length=200)] | None = None
    ttl: Annotated[float, Field(gt=0, le=1e9)] | None = None  # seconds
    model: str | None = None


def parse(kind: type[M], body: bytes | dict[str, object]) -> M:
    """A request from its body, JSON or the fields themselves.

    Raises:
        ApiError: 400, naming the field.
    """
    try:
        if isinstance(body, bytes):
            request = kind.model_validate_json(body)
        else:
            request = kind.model_validate(body)
    except ValidationError as error:
        raise _complaint(error) from None
    _check_extra(request, "")
    for index, message in enumerate(getattr(request, "messages", ())):
        _check_message(message, f"messages.{index}.")
    options = getattr(request, "stream_options", None)
    if options is not None:
        _check_extra(options, "stream_options.")
        if not getattr(request, "stream", None):
            raise invalid("stream_options", "stream_options go with stream=true only")
    return request


def _complaint(error: ValidationError) -> ApiError:
    errors = error.errors(include_url=False, include_input=False)
    # Of a union every member complains: the one of the right type knows more.
    first = next((each for each in errors if not each["type"].endswith("_type")), errors[0])
    if first["type"] == "json_invalid":
        return invalid(None, f"the body is no JSON: {first['msg'].removeprefix('Invalid JSON: ')}")
    # Of a union pydantic also names the member that was tried: "stop.list[str].3".
    places = [str(part) for part in first["loc"] if isinstance(part, int) or part.isidentifier()]
    place = ".".join(part for part in places if part not in ("str", "int"))
    message = (first["msg"][:1].lower() + first["msg"][1:]).replace(" after validation", "")
    if first["type"] == "missing":
        return invalid(place, f"{place} is missing", "missing_required_parameter")
    return invalid(place or None, f"{place or 'the body'}: {message}", "invalid_value")


def _check_extra(model: BaseModel, place: str) -> None:
    for name, value in (model.model_extra or {}).items():
        if value is None or name in _HARMLESS:
            continue
        if name not in _REFUSED:
            raise _unknown(model, place, name)
        neutral, reason = _REFUSED[name]
        if not any(value == each and type(value) is type(each) for each in neutral):
            raise invalid(f"{place}{name}", f"{place}{name}: {reason}", "unsupported_parameter")


def _check_message(message: ChatMessage, place: str) -> None:
    """A message that a client got from here and sends back has empty fields of OpenAI's."""
    for name, value in (message.model_extra or {}).items():
        if value not in (None, [], {}, ""):
            raise invalid(
                f"{place}{name}",
                f"{place}{name}: a message has a role and text, and nothing else",
                "unsupported_parameter",
            )


def _unknown(model: BaseModel, place: str, name: str) -> ApiError:
    near = get_close_matches(name, [*type(model).model_fields, *_REFUSED], 1)
    hint = f"; is {near[0]} meant?" if near else ""
    shown = f"{place}{name}"[:100]
    return invalid(shown, f"{shown} is no parameter of this request{hint}", "unknown_parameter")
