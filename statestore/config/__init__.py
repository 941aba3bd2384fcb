"""Settings from one TOML file, the environment and flags, in that order: the later ones win. Each
value knows where it came from, and no secret is ever shown.

    # config.toml
    [store]
    url = "memory:?budget=1GiB file:///var/lib/states"     RWKV_STATESTORE_URL, --store
    namespace = "default"

    [store.salts]
    tenant = "a long random text"

    [runtime]
    model = "rwkv7-0.1b.pth"                               RWKV_RUNTIME_MODEL, --model
    threads = 4

    [server]
    port = 8000                                            RWKV_SERVER_PORT, --port

The file is the one of ``--config``, else of ``$RWKV_STATESTORE_CONFIG``, else `default_file`. A
relative path in it counts from its own directory. `sections` lists every key, with its default.
Loads neither numpy nor a driver.
"""

from __future__ import annotations

from statestore.config.reading import (
    FILE_VARIABLE,
    KERNEL_VARIABLE,
    Config,
    Origin,
    Source,
    default_file,
    load,
)
from statestore.config.sections import RuntimeSettings, ServerSettings, StoreSettings
from statestore.config.showing import Row, rows, template

__all__ = [
    "FILE_VARIABLE",
    "KERNEL_VARIABLE",
    "Config",
    "Origin",
    "Row",
    "RuntimeSettings",
    "ServerSettings",
    "Source",
    "StoreSettings",
    "default_file",
    "load",
    "rows",
    "template",
]
