"""What a request may say, and what a refusal names."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rwkv_runtime.server.errors import ApiError
from rwkv_runtime.server.schemas import ChatRequest, CompletionRequest, DocumentRequest, parse

CHAT: dict[str, Any] = {"messages": [{"role": "user", "content": "hello"}]}


def status(kind: type, body: bytes) -> int:
    try:
        parse(kind, body)
    except ApiError as error:
        return error.status
    return 200


def refusal(kind: type, fields: dict[str, Any]) -> ApiError:
    with pytest.raises(ApiError) as refused:
        parse(kind, json.dumps(fields).encode())
    assert refused.value.status == 400
    return refused.value


@pytest.mark.parametrize(
    ("fields", "param", "said"),
    [
        ({"n": 2}, "n", "one choice"),
        ({"n": True}, "n", "one choice"),  # 1 == True
        ({"logprobs": True}, "logprobs", "not offered"),
        ({"top_logprobs": 3}, "top_logprobs", "not offered"),
        ({"tools": [{"type": "function"}]}, "tools", "not offered"),
        ({"tool_choice": "required"}, "tool_choice", "not offered"),
        ({"response_format": {"type": "json_object"}}, "response_format", "plain text"),
        ({"logit_bias": {"5": 1}}, "logit_bias", "not offered"),
        ({"temprature": 1}, "temprature", "is temperature meant?"),
        ({"temperature": 2.5}, "temperature", "less than or equal to 2"),
        ({"temperature": "1"}, "temperature", "number"),
        ({"top_p": 0}, "top_p", "greater than 0"),
        ({"seed": -(1 << 63) - 1}, "seed", "greater than or equal to -9223372036854775808"),
        ({"top_k": -2}, "top_k", "greater than or equal to -1"),
        ({"repetition_penalty": 1.1}, "repetition_penalty", "presence_penalty"),
        ({"seed": 1 << 63}, "seed", "less than"),
        ({"max_tokens": 0}, "max_tokens", "greater than or equal to 1"),
        ({"max_tokens": True}, "max_tokens", "integer"),
        ({"stop": ["a"] * 17}, "stop", "at most 16"),
        ({"stop": [1]}, "stop", "string"),
        ({"stream": "yes"}, "stream", "boolean"),
        ({"stream_options": {"include_usage": True}}, "stream_options", "stream=true"),
        (
            {"stream": True, "stream_options": {"includ_usage": True}},
            "stream_options.includ_usage",
            "include_usage",
        ),
        ({"messages": []}, "messages", "at least 1"),
        ({"messages": CHAT["messages"] * 10_001}, "messages", "at most 10000 items, not 10001"),
        ({"messages": [{"content": "x"}]}, "messages.0.role", "missing"),
        (
            {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}]},
            "messages.0.content.0.type",
            "'text'",
        ),
        (
            {"messages": [{"role": "user", "content": "x", "name": "Al"}]},
            "messages.0.name",
            "nothing else",
        ),
        (
            {"messages": [{"role": "assistant", "content": "x", "tool_calls": [{"id": "1"}]}]},
            "messages.0.tool_calls",
            "nothing else",
        ),
        ({"documents": ["doc-1"]}, "documents.0", "pattern"),
        ({"documents": ["doc-" + "0" * 64] * 65}, "documents", "at most 64"),
        ({"cache_salt": ""}, "cache_salt", "at least 1"),
    ],
)
def test_a_refusal_names_the_field_and_why(fields: dict[str, Any], param: str, said: str) -> None:
    error = refusal(ChatRequest, CHAT | fields)
    assert error.param == param
    assert said in error.message


@pytest.mark.parametrize(
    "fields",
    [
        {"user": "someone", "metadata": {"a": "b"}, "store": False, "service_tier": "auto"},
        {"n": 1, "logprobs": False, "tools": [], "tool_choice": "none", "logit_bias": {}},
        {"response_format": {"type": "text"}, "modalities": ["text"], "seed": None},
        {"seed": -1, "top_k": -1, "repetition_penalty": 1.0},
        {"temperature": 1, "top_p": 1, "presence_penalty": 0, "top_k": 40, "min_p": 0.1},
        {"messages": [{"role": "assistant", "content": "x", "refusal": None, "tool_calls": None}]},
        {"messages": [{"role": "user", "content": [{"type": "text", "text": "x"}]}]},
    ],
)
def test_what_changes_no_answer_is_let_by(fields: dict[str, Any]) -> None:
    parse(ChatRequest, json.dumps(CHAT | fields).encode())


def test_the_parts_of_a_message_are_one_text() -> None:
    parts = [{"type": "text", "text": "one, "}, {"type": "text", "text": "two"}]
    fields = {"messages": [{"role": "user", "content": parts}]}
    assert parse(ChatRequest, json.dumps(fields).encode()).messages[0].text == "one, two"


@pytest.mark.parametrize(
    ("body", "said"),
    [
        (b"", "no JSON"),
        (b"{", "no JSON"),
        (b"\xff", "no JSON"),
        (b"[1]", "object"),
        (b"null", "object"),
        (b'{"prompt": NaN}', ""),
        (b'{"prompt": "x", "temperature": NaN}', ""),
        (b"[" * 100_000, "no JSON"),
        (b'{"prompt": "\\ud800"}', ""),
    ],
)
def test_bodies_that_are_no_request(body: bytes, said: str) -> None:
    with pytest.raises(ApiError) as refused:
        parse(CompletionRequest, body)
    assert refused.value.status == 400
    assert said in refused.value.message


@given(st.binary(max_size=200))
def test_whatever_comes_is_a_request_or_a_refusal(body: bytes) -> None:
    for kind in (ChatRequest, CompletionRequest, DocumentRequest):
        assert status(kind, body) in (200, 400)


@given(
    st.dictionaries(
        st.sampled_from([*ChatRequest.model_fields, "n", "tools", "user", "x"]),
        st.recursive(
            st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
            lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner),
            max_leaves=5,
        ),
        max_size=4,
    )
)
def test_whatever_fields_there_are(fields: dict[str, Any]) -> None:
    assert status(ChatRequest, json.dumps(CHAT | fields).encode()) in (200, 400)
