"""Redis URLs: what they mean, what is refused, and that no credential is ever shown."""

from __future__ import annotations

from pathlib import Path

import pytest

from statestore.backends.redis.address import Address
from statestore.errors import SettingsError
from statestore.settings import open_store
from statestore.url import StoreURL
from tests.places.redis_places import open_url


def address(text: str) -> Address:
    url = StoreURL.parse(text)
    return Address.of(url.scheme, url.netloc, url.path, url.options)


def test_the_shortest_url() -> None:
    found = address("redis://")
    assert (found.hosts, found.db, found.tls) == ((("localhost", 6379),), 0, False)
    assert (found.prefix, found.connect_timeout_s, found.timeout_s) == ("statestore", 0.25, 2.0)


@pytest.mark.parametrize(
    ("text", "fields"),
    [
        ("redis://host", {"hosts": (("host", 6379),), "kind": ""}),
        ("redis://host:7000/3", {"hosts": (("host", 7000),), "db": 3}),
        ("redis://[::1]:7000/", {"hosts": (("::1", 7000),), "db": 0}),
        ("redis://host?db=4", {"db": 4}),
        ("rediss://host", {"tls": True}),
        ("unix:///run/a%20b.sock?db=2", {"socket_path": "/run/a b.sock", "db": 2, "hosts": ()}),
        (
            "redis+sentinel://a,b:26380/one/1",
            {"kind": "sentinel", "hosts": (("a", 26379), ("b", 26380)), "service": "one", "db": 1},
        ),
        ("redis+cluster://a:7000,b", {"kind": "cluster", "hosts": (("a", 7000), ("b", 6379))}),
        ("rediss+cluster://a", {"kind": "cluster", "tls": True}),
        ("redis://h?prefix=a.b:c-d_1", {"prefix": "a.b:c-d_1"}),
        ("redis://h?timeout_s=1.5", {"timeout_s": 1.5, "connect_timeout_s": 0.25}),
        ("redis://h?connect_timeout_s=0.1", {"timeout_s": 2.0, "connect_timeout_s": 0.1}),
        ("rediss://h?ssl_ca_certs=/ca.pem", {"tls_options": {"ssl_ca_certs": "/ca.pem"}}),
    ],
)  # fmt: skip
def test_what_a_url_means(text: str, fields: dict[str, object]) -> None:
    found = address(text)
    assert {name: getattr(found, name) for name in fields} == fields


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("redis://host:port", "port"),
        ("redis://a,b", "one host, or write redis\\+cluster://"),
        ("redis://host?prefix=a&prefix=b", "prefix is given twice"),
        ("redis://host:70000", "[Pp]ort"),
        ("redis://host/one", "database 'one'"),
        ("redis://host/1/2", "database '1/2'"),
        ("redis://host/1?db=2", "database '1/2'"),
        ("redis+cluster://host/1", "a Cluster has one database"),
        ("redis+sentinel://host:26379", "name Sentinel's service"),
        ("unix://host/run/redis.sock", "a socket's path is absolute"),
        ("unix://", "a socket's path is absolute"),
        ("redis://host?prefix=", "prefix ''"),
        ("redis://host?prefix=a{b}", "prefix"),
        ("redis://host?prefix=a*", "prefix"),
        ("redis://host?timeout_s=soon", "timeout_s is a number of seconds above 0, .* not 'soon'"),
        ("redis://host?timeout_s=0", "timeout_s is a number"),
        ("redis://host?connect_timeout_s=inf", "connect_timeout_s is a number"),
        ("redis://host?timeout_s=1e15", "at most 3600"),
        ("redis://host?ssl_ca_certs=/ca.pem", "ssl_ca_certs needs rediss://"),
        ("rediss://host?ssl_cert_reqs=maybe", "ssl_cert_reqs is required, optional, none"),
        ("redis://host?retries=3", "unknown option 'retries'"),
    ],
)
def test_what_means_nothing_is_refused(text: str, problem: str) -> None:
    with pytest.raises(SettingsError, match=problem) as caught:
        open_store(text)
    assert "store URL" in str(caught.value)


CREDENTIALS = [
    "redis://alice:s3cret@host:6379/0",
    "redis://:s3cret@host",
    "rediss://alice:s3cret@host?prefix=p",
    "unix://alice:s3cret@/run/redis.sock",
    "redis+sentinel://alice:s3cret@a,b/primary?sentinel_username=alice&sentinel_password=s3cret",
    "redis+cluster://alice:s3cret@a,b:7000",
    "redis://alice:s3cret%40%2F@host",
]


@pytest.mark.parametrize("text", CREDENTIALS)
def test_credentials_are_used_and_never_shown(text: str) -> None:
    found = address(text)
    assert str(found.user.password).startswith("s3cret")
    shown = found.url + repr(found) + open_url(text).url
    assert "s3cret" not in shown
    assert "alice" not in found.url
    assert address(found.url).hosts == found.hosts


@pytest.mark.parametrize("text", CREDENTIALS)
@pytest.mark.parametrize("mistake", ["nonsense=1", "timeout_s=x", "codec=zip", "prefix=*", "db=x"])
def test_no_message_shows_a_password(text: str, mistake: str) -> None:
    with pytest.raises(SettingsError) as caught:
        open_store(text + ("&" if "?" in text else "?") + mistake)
    assert "s3cret" not in str(caught.value)


@pytest.mark.parametrize(
    "text",
    [
        "redis://alice:s3/cret@host",
        "redis://:12/s3cret@host",
        "redis://alice:s3?cret@host",
        "redis://:12?s3cret@host",
        "redis://alice:s3#cret@host",
        "redis://alice:s3\ncret@host?nonsense=1",
        "redis+sentinel://alice:s3/cret@a,b/primary",
        "redis+sentinel://alice:x@/s3cret@a,b/primary",
        "redis://alice:x@/s3cret@host/0",
        "redis://alice:x@y?s3cret@host/0",
        "unix://:x/s3cret@host/0",
        "postgresql://alice:x@/s3cret@host/d?blobs=file:///b",
        "postgresql://alice:x@y?s3cret@host/d?blobs=file:///b",
        "redis:/alice:s3cret@host",
        "Redis:alice:s3cret@host",
        "redis://host?PASSWORD=s3cret",
    ],
)
def test_a_password_that_is_not_escaped_is_not_shown_either(
    text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SettingsError, match="store URL") as caught:
        open_store(text)
    assert "s3" not in str(caught.value)
    assert "cret" not in str(caught.value)
    assert not list(tmp_path.iterdir()), "it was taken for a directory"


def test_sentinels_have_credentials_of_their_own() -> None:
    found = address("redis+sentinel://alice:one@a/s?sentinel_username=bob&sentinel_password=two")
    assert (found.user.username, found.user.password) == ("alice", "one")
    assert (found.sentinel_user.username, found.sentinel_user.password) == ("bob", "two")
