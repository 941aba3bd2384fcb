"""Store URLs taken apart: places, common options, sizes and durations, and what is never shown."""

from __future__ import annotations

import pytest

from statestore.errors import SettingsError
from statestore.settings import parse_place
from statestore.url import StoreURL, duration_s, places, redacted, size_bytes


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("file:///a", ["file:///a"]),
        ("memory: file:///a", ["memory:", "file:///a"]),
        (
            " memory:?budget=1GiB \n file:///a\tredis+cluster://h/0 ",
            ["memory:?budget=1GiB", "file:///a", "redis+cluster://h/0"],
        ),
        ("./my states", ["./my states"]),
        ("memory: ./my states", ["memory:", "./my states"]),
        ("/a/b c?codec=raw ~/d ../e", ["/a/b c?codec=raw", "~/d", "../e"]),
        ("file:///a and /or", ["file:///a and", "/or"]),
        ("./my states redis://h", ["./my states", "redis://h"]),
        ("MEMORY: Redis://h", ["MEMORY:", "Redis://h"]),
    ],
)
def test_places(text: str, found: list[str]) -> None:
    assert places(text) == found


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("0", 0),
        ("4096", 4096),
        ("10B", 10),
        ("1kB", 1000),
        ("200 MB", 200_000_000),
        ("1.5KiB", 1536),
        ("50GiB", 50 << 30),
        ("2TiB", 2 << 40),
    ],
)
def test_sizes(text: str, size: int) -> None:
    assert size_bytes(text, "budget") == size


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("90", 90), ("1.5s", 1.5), ("30m", 1800), ("12h", 43_200), ("7d", 604_800), ("2w", 1_209_600)],
)
def test_durations(text: str, seconds: float) -> None:
    assert duration_s(text, "ttl") == seconds


@pytest.mark.parametrize(
    "text", ["", "-1", "1e3", "GiB", "1 Gb", "1K", "nan", "inf", "٣", "9" * 400]
)
def test_what_is_no_amount_is_named(text: str) -> None:
    with pytest.raises(SettingsError, match=r"^budget: .* is not a size such as 50GiB"):
        size_bytes(text, "budget")
    if text != "1K":
        with pytest.raises(SettingsError, match=r"^ttl: .* is not a time such as 7d"):
            duration_s(text, "ttl")


def test_common_options_are_set_apart() -> None:
    url = StoreURL.parse("redis://h/0?codec=raw&budget=1&budget.team%20a=2&budgets=3&prefix=p")
    divided = url.divided(("codec", "budget", "budget."))
    assert divided.common == {"codec": "raw", "budget": "1", "budget.team a": "2"}
    assert divided.options == {"budgets": "3", "prefix": "p"}


def test_no_secret_of_any_tier_is_shown() -> None:
    text = (
        "memory: redis://:one@h/0 postgresql+psycopg://u:two@h/d?blobs=file:///b&sslpassword=three"
    )
    shown = redacted(text)
    assert shown.startswith("memory: redis://:***@h/0 postgresql+psycopg://u:***@h/d")
    assert not any(secret in shown for secret in ("one", "two", "three"))


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("redis:/u:s3cret@h:1/0", "redis:/u:***@h:1/0"),
        ("redis:u:s3cret@h", "redis:***@h"),
        ("u:s3cret@h/0", "u:***@h/0"),
        ("memory: redis:/:s3cret@h", "memory:***@h"),
        ("/var/a:b@c ./x@y", "/var/a:b@c ./x@y"),
        ("memory: u:s3cret@h/0", "memory:***@h/0"),
        ("redis://h/0?prefix=a u:s3cret@h", "redis://h/0?prefix=a u:***@h"),
    ],
)
def test_no_secret_is_shown_where_the_slashes_were_forgotten(text: str, shown: str) -> None:
    assert redacted(text) == shown


@pytest.mark.parametrize(
    ("url", "instead"),
    [
        ("postgres://u:s3cret@host/db", "write postgresql://"),
        ("sqlite:////var/lib/states.db", "write file:///a/directory"),
        ("mysql+pymysql://u:s3cret@host/db", "write postgresql://, since"),
        ("mariadb://u:s3cret@host/db", "write postgresql://, since"),
        ("s3://bucket/prefix", r"postgresql://host/database\?blobs=s3://bucket/prefix"),
        ("ftp://u:s3cret@host", "known: memory://, file://"),
    ],
)
def test_what_other_programs_call_a_place_is_put_right(url: str, instead: str) -> None:
    with pytest.raises(SettingsError, match=instead) as caught:
        parse_place(url)
    assert "s3cret" not in str(caught.value)


@pytest.mark.parametrize("url", ["redis://h\udcff/0", "redis://h?prefix=\udcff", "unix:///\udcff"])
def test_bytes_that_no_server_can_be_sent_are_named(url: str) -> None:
    with pytest.raises(SettingsError, match=r"'.*\\udcff.*': it is no UTF-8"):
        parse_place(url)
