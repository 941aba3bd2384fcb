"""Every setting there is: one dataclass for each table of the file, one field for each key.

A field's default is the setting's; its metadata holds the kind, a sentence of help, and whether it
is a secret. The variable of the environment follows from the names: ``[server]``
``port`` is ``RWKV_SERVER_PORT``.
"""

# ruff: noqa: RUF009 - fields are made by a helper
from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from platformdirs import user_data_path

from statestore.config import kinds

#: What the names of a section's variables begin with.
PREFIXES: Final = {
    "store": "RWKV_STATESTORE_",
    "runtime": "RWKV_RUNTIME_",
    "server": "RWKV_SERVER_",
}


def _key(default: object, kind: kinds.Kind, sentence: str, *, secret: bool = False) -> Any:  # noqa: ANN401 - it stands for a value of the field's type
    """A field; a `default` that can be called makes the default."""
    metadata = {"kind": kind, "help": sentence, "secret": secret}
    if callable(default):
        return field(default_factory=default, metadata=metadata, repr=False)  # URL and salts
    return field(default=default, metadata=metadata, repr=not secret)


def default_store() -> str:
    """A directory among the user's application data."""
    return user_data_path("rwkv-statestore").as_uri()


@dataclass(frozen=True, slots=True)
class StoreSettings:
    """``[store]``: which states, and whose."""

    url: str = _key(
        default_store, kinds.text, "The store; several places are tiers, nearest first."
    )
    namespace: str = _key("default", kinds.namespace, "Whose states.")
    salts: Mapping[str, str] = _key(
        dict, kinds.salts, "Namespaces' salts: no tenant can ask for another's.", secret=True
    )

    def salt(self, namespace: str) -> bytes:
        """The salt of `namespace`; empty where none is given."""
        return self.salts.get(namespace, "").encode()


@dataclass(frozen=True, slots=True)
class RuntimeSettings:
    """``[runtime]``: the model and how it computes."""

    model: Path | None = _key(None, kinds.path, "Weights: .pth, .safetensors, or a directory.")
    dtype: str = _key("fp32", kinds.choice("fp32", "bf16", "fp16"), "What the model computes in.")
    device: str = _key("cpu", kinds.choice("cpu", "cuda"), "Where it computes.")
    threads: int | None = _key(None, kinds.whole(1), "CPU threads of the engine.")
    strategy: str | None = _key(None, kinds.text, "Compute with the rwkv package: 'cpu fp32'.")
    initial_state: Path | None = _key(None, kinds.path, "A state-tuned file to begin from.")
    lossy: str | None = _key(
        None, kinds.choice("fp16", "bf16", "int8"), "Round states at each chunk end."
    )
    kernel: str = _key("torch", kinds.choice("torch", "native"), "What computes tokens.")
    tokenizer: str | None = _key(
        None, kinds.choice("bytes", "world"), "By default the one that fits the model."
    )
    access_log: Path | None = _key(None, kinds.path, "Gets a line for each prompt, without text.")


@dataclass(frozen=True, slots=True)
class ServerSettings:
    """``[server]``: `rwkv-runtime serve`."""

    host: str = _key("127.0.0.1", kinds.text, "The address to listen on.")
    port: int = _key(8000, kinds.whole(0, 65535), "The port to listen on.")
    workers: int | None = _key(
        None, kinds.whole(1), "Processes; by default one for every two cores."
    )
    streams: int = _key(32, kinds.whole(1), "Answers written side by side, in each worker.")
    readers: int = _key(16, kinds.whole(1), "Prompts read side by side, in each worker.")
    queue: int = _key(64, kinds.whole(1), "Requests that wait in each worker; more get 429.")
    max_tokens: int = _key(16384, kinds.whole(1), "The longest answer.")
    chat_template: str = _key(
        "auto", kinds.choice("auto", "world", "qa"), "How messages are written for the model."
    )
    api_keys: Path | None = _key(None, kinds.path, "A TOML file: API keys and their namespaces.")
    max_body_bytes: int = _key(16 << 20, kinds.size, "The largest request.")
    max_document_bytes: int = _key(64 << 20, kinds.size, "The largest document.")
    max_documents_bytes: int = _key(
        1 << 30, kinds.size, "Token ids of all documents of a namespace, four bytes each."
    )
    shutdown_s: float = _key(30.0, kinds.duration, "How long streams may go on after SIGTERM.")
    cors_origins: tuple[str, ...] = _key(
        (), kinds.texts, "Web pages' origins that may call; none by default."
    )


SECTIONS: Final = {"store": StoreSettings, "runtime": RuntimeSettings, "server": ServerSettings}


def variable(section: str, key: str) -> str:
    """The variable of the environment that sets ``[section] key``."""
    return PREFIXES[section] + key.upper()
