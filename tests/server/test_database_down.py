"""A server that begins while its catalog's server is down."""

from __future__ import annotations

from pathlib import Path

from rwkv_runtime.demo.corpus import Document
from tests.places.postgres_servers import USER, PostgresServer
from tests.server.servers import serving, wait_until


def test_a_server_begins_without_its_catalog(tmp_path: Path, text: Document) -> None:
    postgres = PostgresServer()
    try:
        postgres.start()
        url = postgres.url(postgres.create_database(postgres.at_head), tmp_path / "blobs")
        postgres.stop()
        with serving("--workers", "1", store=url) as server:
            for path, status in (("/readyz", 200), ("/v1/documents", 503), ("/v1/store", 503)):
                answer = server.request("GET", path)  # to whom it is of no use, no place is named
                assert answer.status_code == status
                assert not any(word in answer.text for word in (USER, "127.0.0.1", "blobs"))
            assert server.request("GET", "/readyz").json()["store"].startswith("down")
            prompt = {"prompt": "x", "max_tokens": 2}
            assert server.request("POST", "/v1/completions", json=prompt).status_code == 200
            document = {"text": text.text}
            assert server.request("PUT", "/v1/documents", json=document).status_code == 503

            postgres.start()
            wait_until(
                lambda: server.request("PUT", "/v1/documents", json=document).is_success,
                "a put that is kept",
            )
            again = server.request("PUT", "/v1/documents", json=document).json()
            assert again["cached"] == again["tokens"]
        assert (tmp_path / "blobs").is_dir()
    finally:
        postgres.remove()
