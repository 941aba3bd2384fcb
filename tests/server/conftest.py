"""One server with two workers for all tests that leave it as it is."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from rwkv_runtime.demo.corpus import Document, demo_document, unseen_document
from tests.server.servers import Server, serving
from tests.threads import nothing_left_running

__all__ = ["nothing_left_running"]


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """Two workers over one file store, the demo model."""
    store = (tmp_path_factory.mktemp("served") / "states").as_uri()
    with serving("--workers", "2", store=store) as running:
        yield running


@pytest.fixture(scope="session")
def text() -> Document:
    """What is asked about."""
    return demo_document()


@pytest.fixture(scope="session")
def document(server: Server, text: Document) -> str:
    """Its id at `server`."""
    answer = server.request("PUT", "/v1/documents", json={"text": text.text, "name": "demo"})
    assert answer.status_code == 200, answer.text
    return str(answer.json()["id"])


@pytest.fixture
def fresh(request: pytest.FixtureRequest) -> Document:
    """A document of this test's own."""
    seed = sum(request.node.nodeid.encode())
    return unseen_document(seed, facts=8)
