"""API keys: whose request it is, and what a keys file may say."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from rwkv_runtime.server.access import load_access
from rwkv_runtime.server.errors import ApiError
from statestore.errors import SettingsError
from statestore.keys import Namespace

KEY = "sk-0123456789abcdef"
OTHER = "sk-fedcba9876543210"
DEFAULT = Namespace("default")


def file(directory: Path, content: str) -> Path:
    path = directory / "keys.toml"
    path.write_text(content, encoding="utf-8")
    return path


def test_without_a_file_everybody_is_the_default() -> None:
    access = load_access(None, Namespace("mine", b"salt"))
    assert access.namespace(None) == Namespace("mine", b"salt")
    assert access.namespace("Bearer whatever") == Namespace("mine", b"salt")


def test_a_key_leads_to_its_namespace(tmp_path: Path) -> None:
    digest = hashlib.sha256(OTHER.encode()).hexdigest()
    path = file(
        tmp_path,
        f'[[keys]]\nkey = "{KEY}"\nnamespace = "alice"\nsalt = "hers"\n'
        f'[[keys]]\nsha256 = "{digest}"\nnamespace = "bob"\n',
    )
    access = load_access(path, DEFAULT)
    assert access.namespace(f"Bearer {KEY}") == Namespace("alice", b"hers")
    assert access.namespace(f"bearer  {OTHER} ") == Namespace("bob")


def test_a_key_is_compared_byte_by_byte(tmp_path: Path) -> None:
    path = file(tmp_path, '[[keys]]\nkey = "schl\u00fcssel-der-anna"\nnamespace = "anna"\n')
    header = "Bearer schl\u00fcssel-der-anna".encode().decode("latin-1")  # as a server hears it
    assert load_access(path, DEFAULT).namespace(header) == Namespace("anna")


def test_a_namespaces_salt_may_come_from_the_settings(tmp_path: Path) -> None:
    path = file(tmp_path, f'[[keys]]\nkey = "{KEY}"\nnamespace = "alice"\n')
    access = load_access(path, DEFAULT, {"alice": "hers"})
    assert access.namespace(f"Bearer {KEY}") == Namespace("alice", b"hers")


@pytest.mark.parametrize(
    "header",
    [None, "", "Bearer", "Bearer ", f"Basic {KEY}", KEY, f"Bearer {KEY[:-1]}", f"Bearer {KEY}x",
     "Bearer \u00e4"],
)  # fmt: skip
def test_who_has_no_key_is_not_let_in(tmp_path: Path, header: str | None) -> None:
    access = load_access(file(tmp_path, f'[[keys]]\nkey = "{KEY}"\nnamespace = "a"\n'), DEFAULT)
    with pytest.raises(ApiError) as refused:
        access.namespace(header)
    assert refused.value.status == 401
    assert refused.value.headers["WWW-Authenticate"] == "Bearer"


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("", "no [[keys]]"),
        ("keys = 3", "no [[keys]]"),
        ("[[keys]\n", "line 1"),
        ('[[keys]]\nnamespace = "a"\n', "one of key and sha256"),
        (f'[[keys]]\nkey = "{KEY}"\nsha256 = "x"\nnamespace = "a"\n', "one of key and sha256"),
        (f'[[keys]]\nkey = "{KEY}"\n', "namespace is missing"),
        (f'[[keys]]\nkey = "{KEY}"\nnamespace = "a b"\n', "letters, digits"),
        ('[[keys]]\nkey = "short"\nnamespace = "a"\n', "16 characters"),
        ('[[keys]]\nsha256 = "12"\nnamespace = "a"\n', "64 hex digits"),
        (f'[[keys]]\nkey = "{KEY}"\nnamespace = 3\n', "texts only"),
        (f'[[keys]]\nkey = "{KEY}"\nnamespace = "a"\nname = "x"\n', "name is not known"),
        (f'[[keys]]\nkey = "{KEY}"\nnamespace = "a"\n' * 2, "there twice"),
        (
            f'[[keys]]\nkey="{KEY}"\nnamespace="a"\n[[keys]]\nkey="{OTHER}"\nnamespace="a"\nsalt="s"',
            "two salts",
        ),
    ],
)
def test_a_file_that_means_nothing(tmp_path: Path, content: str, said: str) -> None:
    with pytest.raises(SettingsError) as refused:
        load_access(file(tmp_path, content), DEFAULT)
    assert said in str(refused.value)
    assert KEY not in str(refused.value)


def test_a_file_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="No such file"):
        load_access(tmp_path / "none.toml", DEFAULT)
    (tmp_path / "latin").write_bytes(b"\xe4")
    with pytest.raises(SettingsError, match="UTF-8"):
        load_access(tmp_path / "latin", DEFAULT)


def test_no_secret_is_shown(tmp_path: Path) -> None:
    path = file(tmp_path, f'[[keys]]\nkey = "{KEY}"\nnamespace = "a"\nsalt = "hidden"\n')
    shown = repr(load_access(path, DEFAULT).keys)
    assert KEY not in shown
    assert hashlib.sha256(KEY.encode()).hexdigest() not in shown
    assert "hidden" not in shown
