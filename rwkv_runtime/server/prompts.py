"""From the texts of a request to the segments and settings that streams are made of.

Each document is a segment; then come the messages as the template writes them, or the prompt. A
`cache_salt` is another salt of the namespace: what is read under it is found under it alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from rwkv_runtime.chat import ChatTemplate, Message
from rwkv_runtime.generation import Stop
from rwkv_runtime.sampling import Sampling
from rwkv_runtime.server.documents import Documents
from rwkv_runtime.server.errors import invalid
from rwkv_runtime.server.schemas import ChatRequest, CompletionRequest, Sampled
from rwkv_runtime.serving.events import Request
from rwkv_runtime.tokenizer import Tokenizer
from statestore.errors import InputError
from statestore.keys import Namespace, Tokens, hashing

COMPLETION_TOKENS: Final = 16  # OpenAI's own default
CHAT_TOKENS: Final = 2048
#: Between a document and what follows it, by template; a text ends as it ends.
SEPARATORS: Final = {"world": "\n\n"}
TEMPERATURE: Final = 1.0  # OpenAI's own default


class Prompts:
    """Makes streams' requests. Safe to use from several threads; may wait for the store.

    Args:
        tokenizer: the model's.
        template: how messages are written.
        documents: those that requests name.
        max_tokens: the most that one answer may have.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        template: ChatTemplate,
        documents: Documents,
        max_tokens: int,
    ) -> None:
        self.tokenizer = tokenizer
        self._template = template
        self._documents = documents
        self._max_tokens = max_tokens

    def completion(self, request: CompletionRequest, namespace: Namespace) -> Request:
        """A prompt to go on with.

        Raises:
            ApiError: a field means nothing; a document is not there.
            InputError: the prompt is empty, or not of the model's vocabulary.
        """
        limit = self._limit("max_tokens", request.max_tokens, COMPLETION_TOKENS)
        documents = self._document_tokens(request, namespace)
        return Request(
            segments=[*documents, self._prompt_tokens(request)],
            namespace=salted(namespace, request.cache_salt),
            max_tokens=limit,
            sampling=_sampling(request),
            stop=Stop.at(*request.stops),
            named_segments=len(documents),
        )

    def chat(self, request: ChatRequest, namespace: Namespace) -> Request:
        """Messages to reply to.

        Raises:
            ApiError: a field means nothing; a document is not there.
            InputError: the template cannot write the messages.
        """
        if request.max_completion_tokens is None:
            limit = self._limit("max_tokens", request.max_tokens, CHAT_TOKENS)
        else:
            limit = self._limit("max_completion_tokens", request.max_completion_tokens, 0)
        between = SEPARATORS.get(self._template.name, "")
        documents = self._document_tokens(request, namespace, between)
        texts = [between if documents else "", *self._template.segments(_messages(request))]
        return Request(
            segments=[*documents, *(self.tokenizer.encode(text) for text in texts)],
            namespace=salted(namespace, request.cache_salt),
            max_tokens=limit,
            sampling=_sampling(request),
            stop=Stop.at(*self._template.stops, *request.stops),
            named_segments=len(documents),
            grows=True,
        )

    def _limit(self, field: str, wanted: int | None, default: int) -> int:
        if wanted is not None and wanted > self._max_tokens:
            raise invalid(
                field, f"{field} is {wanted}; an answer here has {self._max_tokens} at most"
            )
        return wanted or min(default, self._max_tokens)

    def _document_tokens(
        self, request: Sampled, namespace: Namespace, between: str = ""
    ) -> Sequence[Tokens]:
        """The documents, and `between` two of them."""
        segments: list[Tokens] = []
        for id_ in request.documents or ():
            if segments and between:
                segments.append(self.tokenizer.encode(between))
            segments.append(self._documents.tokens(namespace, id_))
        return segments

    def _prompt_tokens(self, request: CompletionRequest) -> Tokens:
        prompt = request.prompt
        if not isinstance(prompt, str) and prompt and not isinstance(prompt[0], int):
            if len(prompt) > 1:
                raise invalid("prompt", f"prompt holds {len(prompt)}: send one per request")
            prompt = prompt[0]
        if not prompt:
            raise invalid("prompt", "prompt is empty")
        if isinstance(prompt, str):
            return self.tokenizer.encode(prompt)
        return [token for token in prompt if isinstance(token, int)]


def salted(namespace: Namespace, cache_salt: str | None) -> Namespace:
    """The namespace; with a `cache_salt`, one of the same name that only this salt leads to."""
    if cache_salt is None:
        return namespace
    fields = (namespace.salt, hashing.utf8(cache_salt, "cache_salt"))
    return Namespace(namespace.name, hashing.digest(hashing.tag("cache_salt"), *fields))


def _messages(request: ChatRequest) -> list[Message]:
    messages = []
    for index, message in enumerate(request.messages):
        role = "system" if message.role == "developer" else message.role
        try:
            messages.append(Message(role, message.text))
        except InputError as error:
            raise invalid(f"messages.{index}.role", str(error)) from None
    return messages


def _sampling(request: Sampled) -> Sampling:
    temperature = request.temperature
    return Sampling(
        temperature=TEMPERATURE if temperature is None else temperature,
        top_k=max(request.top_k or 0, 0),
        top_p=1.0 if request.top_p is None else request.top_p,
        min_p=request.min_p or 0.0,
        presence_penalty=request.presence_penalty or 0.0,
        frequency_penalty=request.frequency_penalty or 0.0,
        penalty_decay=1.0 if request.penalty_decay is None else request.penalty_decay,
        seed=request.seed,
    )
