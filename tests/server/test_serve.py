"""The server as its clients see it: `openai`, and plain HTTP. Two workers, one store."""

from __future__ import annotations

import json
import socket
from typing import Any

import openai
import pytest

from rwkv_runtime.demo.corpus import Document
from rwkv_runtime.server import standing
from statestore import Role, StateKey, open_store
from tests.server.servers import Server, wait_until

QUIET = {"temperature": 0, "max_tokens": 32}


def ask(client: openai.OpenAI, document: str, question: str, **options: Any) -> Any:
    return client.chat.completions.create(
        model="demo",
        messages=[{"role": "user", "content": question}],
        extra_body={"documents": [document], **options.pop("extra_body", {})},
        **{**QUIET, **options},
    )


def cached(answer: Any) -> int:
    return answer.usage.prompt_tokens_details.cached_tokens


def read(stream: Any) -> tuple[str, list[Any]]:
    chunks = list(stream)
    pieces = (chunk.choices[0] for chunk in chunks if chunk.choices)
    text = "".join(p.text if hasattr(p, "text") else p.delta.content or "" for p in pieces)
    return text, chunks


def test_the_model_is_listed(server: Server) -> None:
    client = server.client()
    assert [model.id for model in client.models.list()] == ["demo"]
    assert client.models.retrieve("demo").owned_by == "rwkv-statestore"
    with pytest.raises(openai.NotFoundError, match="'gpt-4' is not served here; 'demo' is"):
        client.models.retrieve("gpt-4")


def test_questions_about_a_document(server: Server, document: str, text: Document) -> None:
    client = server.client()
    tokens = len(text.text.encode())
    for question in text.questions[:4]:
        answer = ask(client, document, question.text)
        assert answer.choices[0].message.content == question.answer
        assert answer.choices[0].finish_reason == "stop"
        assert answer.id.startswith("chatcmpl-")
        usage = answer.usage
        assert usage.total_tokens == usage.prompt_tokens + usage.completion_tokens
        assert cached(answer) >= tokens
        assert usage.prompt_tokens == tokens + len(f"\nQ: {question.text}\nA:".encode())
        assert usage.completion_tokens == len(f" {question.answer}\n".encode())


def test_a_stream_says_the_same(server: Server, document: str, text: Document) -> None:
    client = server.client()
    question = text.questions[5]
    whole = ask(client, document, question.text)
    options = {"stream": True, "stream_options": {"include_usage": True}}
    said, chunks = read(ask(client, document, question.text, **options))
    assert said == whole.choices[0].message.content == question.answer
    assert chunks[0].choices[0].delta.role == "assistant"
    assert chunks[-2].choices[0].finish_reason == "stop"
    assert chunks[-1].choices == []
    assert chunks[-1].usage.completion_tokens == whole.usage.completion_tokens
    assert len({chunk.id for chunk in chunks}) == 1
    assert all(chunk.usage is None for chunk in chunks[:-1])
    _, chunks = read(ask(client, document, question.text, stream=True))
    assert all(chunk.usage is None for chunk in chunks)


def test_completions(server: Server, text: Document) -> None:
    client = server.client()
    prompt = f"{text.text}\nQ: {text.questions[0].text}\nA:"
    whole = client.completions.create(model="demo", prompt=prompt, stop="\n", **QUIET)
    assert whole.choices[0].text == f" {text.questions[0].answer}"
    assert whole.choices[0].finish_reason == "stop"
    tokens = list(prompt.encode())
    for same in ([prompt], tokens, [tokens]):
        again = client.completions.create(model="demo", prompt=same, stop=["\n"], **QUIET)
        assert again.choices[0].text == whole.choices[0].text
    assert cached(again) > len(tokens) - 64
    said, chunks = read(
        client.completions.create(model="demo", prompt=prompt, stop="\n", stream=True, **QUIET)
    )
    assert said == whole.choices[0].text
    assert chunks[-1].choices[0].finish_reason == "stop"


def test_sixteen_tokens_where_nobody_says_how_many(server: Server) -> None:
    answer = server.client().completions.create(model="demo", prompt="The code", temperature=0)
    assert answer.usage.completion_tokens == 16
    assert answer.choices[0].finish_reason == "length"


def test_a_seed_makes_a_text_repeatable(server: Server) -> None:
    client = server.client()

    def texts(seeds: list[int | None], **options: Any) -> set[str]:
        answers = [
            client.completions.create(
                model="demo", prompt="In the town", max_tokens=16, seed=seed, **options
            )
            for seed in seeds
        ]
        return {answer.choices[0].text for answer in answers}

    assert len(texts([7, 7])) == 1
    assert len(texts([1, 2, 3])) > 1
    assert len(texts([None] * 3)) > 1
    assert len(texts([1, 2], temperature=0)) == 1
    assert len(texts([1, 2], extra_body={"top_k": 1})) == 1
    assert texts([1], temperature=0) != texts([1], temperature=0, frequency_penalty=2)


def test_the_next_turn_finds_the_last(server: Server, fresh: Document) -> None:
    client = server.client()
    messages: list[Any] = [{"role": "system", "content": fresh.text}]
    before = 0
    for turn, question in enumerate(fresh.questions[:3]):
        messages.append({"role": "user", "content": question.text})
        answer = client.chat.completions.create(model="demo", messages=messages, **QUIET)
        if turn:
            assert cached(answer) >= before - 20  # all but what flows into the reply's chunk
            assert answer.usage.prompt_tokens - cached(answer) < 128
        before = answer.usage.prompt_tokens
        messages.append(answer.choices[0].message.model_dump())


def test_a_salt_keeps_what_was_read_apart(server: Server, document: str, text: Document) -> None:
    client = server.client()
    question = text.questions[6].text
    assert cached(ask(client, document, question)) > 0
    salted = {"extra_body": {"cache_salt": f"mine-{document}"}}
    first = ask(client, document, question, **salted)
    assert cached(first) == 0
    wait_until(
        lambda: cached(ask(client, document, question, **salted)) >= len(text.text.encode()),
        "the state under the salt",
    )
    other = {"extra_body": {"cache_salt": "another"}}
    assert cached(ask(client, document, question, **other)) == 0
    assert first.choices[0].message.content == text.questions[6].answer


def test_a_document_put_through_one_worker_is_warm_in_the_other(
    server: Server, fresh: Document
) -> None:
    tokens = len(fresh.text.encode())
    with server.each_worker() as workers:
        one, other = workers.values()
        body = {"text": fresh.text, "name": "shared"}
        put = one.put("/v1/documents", json=body).json()
        assert (put["tokens"], put["cached"], put["computed"]) == (tokens, 0, tokens)
        again = other.put("/v1/documents", json=body).json()
        assert (again["id"], again["cached"], again["computed"]) == (put["id"], tokens, 0)
        for worker in (other, one):
            question = fresh.questions[0]
            answer = worker.post(
                "/v1/chat/completions",
                json={
                    "documents": [put["id"]],
                    "messages": [{"role": "user", "content": question.text}],
                    **QUIET,
                },
            ).json()
            assert answer["choices"][0]["message"]["content"] == question.answer
            assert answer["usage"]["prompt_tokens_details"]["cached_tokens"] >= tokens
        assert other.get(f"/v1/documents/{put['id']}").json()["cached"] == tokens
        assert put["id"] in [each["id"] for each in other.get("/v1/documents").json()["data"]]
        assert other.delete(f"/v1/documents/{put['id']}").json()["deleted"]
        for worker in (one, other):
            assert worker.get(f"/v1/documents/{put['id']}").status_code == 404
        assert one.put("/v1/documents", json=body).json()["cached"] == 0


def test_documents_in_every_form(server: Server) -> None:
    text = "A short text, which was read once.\n" * 12
    forms: list[dict[str, Any]] = [
        {"json": {"text": text, "name": "t"}},
        {"json": {"input": text}},
        {"json": {"input": list(text.encode())}},
        {"content": text.encode(), "headers": {"Content-Type": "text/plain; charset=utf-8"}},
        {"content": text.encode(), "params": {"name": "other", "ttl": "1e6"}},
    ]
    answers = [server.request("PUT", "/v1/documents", **form) for form in forms]
    assert [answer.status_code for answer in answers] == [200] * 5
    assert len({answer.json()["id"] for answer in answers}) == 1
    assert [answer.json()["name"] for answer in answers] == ["t", "t", "t", "t", "other"]
    assert server.request("DELETE", f"/v1/documents/{answers[0].json()['id']}").status_code == 200


def test_a_deleted_document_leaves_no_state_where_another_parts_from_it(server: Server) -> None:
    def forks() -> set[StateKey]:
        with open_store(server.store) as store:
            return {entry.key for entry in store.list() if entry.role is Role.FORK}

    before = forks()
    shared = "What both documents begin with, line by line.\n" * 30
    ids = [
        server.request("PUT", "/v1/documents", json={"text": shared + f"{end} " * 300}).json()["id"]
        for end in ("One", "Two")
    ]
    wait_until(lambda: forks() != before, "a state where they part")
    assert [key.n_tokens for key in forks() - before] == [len(shared) // 256 * 256]
    for id_ in ids:
        assert server.request("DELETE", f"/v1/documents/{id_}").status_code == 200
    assert forks() == before


def test_the_list_of_documents_has_pages(server: Server) -> None:
    ids = {
        server.request("PUT", "/v1/documents", json={"text": f"Page {i}. " * 8}).json()["id"]
        for i in range(5)
    }
    seen: list[str] = []
    page: dict[str, Any] = {"has_more": True}
    while page["has_more"]:
        after = {"after": seen[-1]} if seen else {}
        page = server.request("GET", "/v1/documents", params={"limit": 2, **after}).json()
        assert len(page["data"]) <= 2
        seen += [each["id"] for each in page["data"]]
    assert ids <= set(seen)
    assert len(seen) == len(set(seen))
    for id_ in ids:
        server.request("DELETE", f"/v1/documents/{id_}")


@pytest.mark.parametrize(
    ("method", "path", "options", "status", "said"),
    [
        ("POST", "/v1/chat/completions", {"json": {"messages": []}}, 400, "messages"),
        ("POST", "/v1/chat/completions", {"content": b"{}"}, 415, "application/json"),
        ("POST", "/v1/chat/completions", {"json": {"messages": [{"role": "x"}]}}, 400, "role 'x'"),
        ("POST", "/v1/completions", {"json": {"prompt": ""}}, 400, "prompt is empty"),
        ("POST", "/v1/completions", {"json": {"prompt": ["a", "b"]}}, 400, "one per request"),
        ("POST", "/v1/completions", {"json": {"prompt": [1, 256]}}, 400, "0 to 255"),
        ("POST", "/v1/completions", {"json": {"prompt": "x", "max_tokens": 99999}}, 400, "16384"),
        ("POST", "/v1/completions", {"json": {"prompt": "x", "model": "y"}}, 404, "'demo' is"),
        ("GET", "/v1/completions", {}, 405, "Method Not Allowed".lower()),
        ("GET", "/v1/nothing", {}, 404, "not found"),
        ("PUT", "/v1/documents", {"content": b"\xff"}, 400, "not UTF-8"),
        ("PUT", "/v1/documents", {"content": b""}, 400, "empty"),
        ("PUT", "/v1/documents", {"json": {}}, 400, "text or as input"),
        ("PUT", "/v1/documents", {"json": {"input": [0, 300]}}, 400, "0 to 255"),
        ("PUT", "/v1/documents", {"json": {"text": "x", "ttl": 0}}, 400, "greater than 0"),
        ("PUT", "/v1/documents", {"content": b"x", "params": {"ttl": "x"}}, 400, "seconds"),
        ("GET", f"/v1/documents/doc-{'0' * 64}", {}, 404, "PUT /v1/documents"),
        ("DELETE", "/v1/documents/nonsense", {}, 404, "PUT /v1/documents"),
        ("GET", "/v1/documents?limit=0", {}, 400, "limit"),
        ("GET", f"/v1/documents?limit={'9' * 5000}", {}, 400, "limit"),
        (
            "POST",
            "/v1/completions",
            {"json": {"prompt": "x", "documents": [f"doc-{'0' * 64}"]}},
            404,
            "is not here",
        ),
    ],
)
def test_errors_have_openais_shape(
    server: Server, method: str, path: str, options: Any, status: int, said: str
) -> None:
    answer = server.request(method, path, **options)
    assert answer.status_code == status
    error = answer.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert said in error["message"]


def test_a_server_of_this_machine_answers_no_page_of_elsewhere(server: Server) -> None:
    refused = server.request("GET", "/healthz", headers={"Host": "evil.example"})
    assert refused.status_code == 403
    assert "Host: localhost" in refused.json()["error"]["message"]
    answer = server.request("GET", "/healthz", headers={"Origin": "http://evil.example"})
    assert "access-control-allow-origin" not in answer.headers


def test_a_client_that_goes_away_frees_its_place(server: Server, document: str) -> None:
    """Within a stream, and while it waits for the whole answer."""

    def idle() -> bool:
        return server.figure("rwkv_streams") == 0

    body = {"prompt": "The", "documents": [document], "max_tokens": 16000, "seed": 1}
    for stream in (True, False):
        raw = json.dumps({**body, "stream": stream}).encode()
        head = f"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(raw)}\r\n"
        host, port = server.url.removeprefix("http://").split(":")
        with socket.create_connection((host, int(port))) as client:
            client.sendall(f"{head}Content-Type: application/json\r\n\r\n".encode() + raw)
            if stream:
                wait_until(lambda c=client: b"text_completion" in c.recv(4096), "the first token")
            wait_until(lambda: not idle(), "the stream to begin")
        wait_until(idle, f"the place of a client that went away (stream={stream})")
    assert server.figure('rwkv_requests_total{endpoint="/v1/completions",status="499"}') == 2


def test_health_and_readiness(server: Server) -> None:
    assert server.request("GET", "/healthz").json() == {"status": "ok"}
    ready = server.request("GET", "/readyz").json()
    assert (ready["status"], ready["store"]) == ("ready", "ok")


def test_metrics_count_over_all_workers(server: Server, document: str, text: Document) -> None:
    with server.each_worker() as workers:
        before = server.figure("rwkv_completion_tokens_total")
        asked = server.figure('rwkv_requests_total{endpoint="/v1/completions",status="200"}')
        for client in workers.values():
            body = {"prompt": "x", "documents": [document], "max_tokens": 5, "temperature": 0}
            assert client.post("/v1/completions", json=body).status_code == 200
        texts = [client.get("/metrics").text for client in workers.values()]
    for exposed in texts:
        assert "rwkv_first_token_seconds_bucket" in exposed
        assert "statestore_lookups_total" in exposed
        assert "statestore_tokens_found_total" in exposed
    assert server.figure("rwkv_completion_tokens_total") == before + 10
    assert (
        server.figure('rwkv_requests_total{endpoint="/v1/completions",status="200"}') == asked + 2
    )
    assert server.figure("rwkv_worker_ready") == 2


def test_the_store_in_figures(server: Server, document: str, text: Document) -> None:
    client = server.client()
    ask(client, document, text.questions[0].text)

    def counted() -> bool:
        store = server.request("GET", "/v1/store").json()
        assert store["namespace"] == "default"
        return store["hits"] > 0 and store["tokens_saved"] > 0 and store["seconds_saved"] > 0

    wait_until(counted, "the hits")
    assert server.request("GET", "/v1/store").json()["bytes"] > 0


def test_the_page_asks_nobody_else(server: Server) -> None:
    page = server.request("GET", "/")
    assert page.headers["content-type"].startswith("text/html")
    assert "default-src 'none'" in page.headers["content-security-policy"]
    assert "http://" not in page.text
    script = server.request("GET", "/app.js")
    assert "javascript" in script.headers["content-type"]
    assert script.headers["x-content-type-options"] == "nosniff"
    assert server.request("GET", "/../__init__.py").status_code == 404


def test_no_text_is_logged(server: Server, text: Document) -> None:
    client = server.client()
    secret = "a word that nobody else has"
    client.completions.create(model="demo", prompt=secret, **QUIET)
    server.request("PUT", "/v1/documents", params={"name": secret}, content=secret.encode())
    wait_until(lambda: "PUT /v1/documents 200" in server.log, "the log's line")
    assert "POST /v1/completions 200" in server.log
    assert secret not in server.log
    assert text.text[:40] not in server.log


def test_who_only_looks_fills_no_log(server: Server) -> None:
    before = server.log.count("GET /v1/models 200")
    for look in standing.LOOKS:
        assert server.request("GET", look).status_code == 200
        assert server.request("POST", look).status_code == 405
    for _ in range(8):  # so that each worker has answered something else since
        assert server.request("GET", "/v1/models").status_code == 200
    wait_until(lambda: server.log.count("GET /v1/models 200") >= before + 8, "the lines behind")
    for look in standing.LOOKS:
        assert f"GET {look} 200" not in server.log
        assert f"POST {look} 405" in server.log
