"""A store for RWKV states: content-addressed, exact, crash-safe. Needs no torch.

>>> from statestore import open_store
>>> with open_store("file:///tmp/states") as store:  # doctest: +SKIP
...     store.usage().entries
0

* `open_store` opens a place by its URL (`statestore.settings` lists them) as a `StateStore`.
* `plan` cuts a prompt's segments into chunks (`ChunkRule`) and says which `StateKey` each boundary
  has, for a `Fingerprint` and a `Namespace`.
* `StateStore.find` gives the deepest stored `State` of these keys as a `Found`; `StateStore.put`
  keeps one, for an `Identity`, and says by a `PutOutcome` what became of it.
* `Entry` is what is known of a stored state; an `EntryFilter` picks some, `Usage` sums them up.
* `StateStoreError` is the root of all errors (`statestore.errors` draws the tree).

``examples/by_hand.py`` is a complete program; `rwkv_runtime` reads prompts through such a store.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from statestore.entry import Entry, EntryFilter, Role, Usage
    from statestore.errors import StateStoreError
    from statestore.keys import ChunkRule, Fingerprint, Namespace, StateKey, plan
    from statestore.schema import State
    from statestore.settings import open_store
    from statestore.store import Found, Identity, PutOutcome, StateStore

__all__ = [
    "ChunkRule",
    "Entry",
    "EntryFilter",
    "Fingerprint",
    "Found",
    "Identity",
    "Namespace",
    "PutOutcome",
    "Role",
    "State",
    "StateKey",
    "StateStore",
    "StateStoreError",
    "Usage",
    "open_store",
    "plan",
]

# Loaded when first asked for: `statestore --help`, and a shell's completion, need none of them.
_PLACES = {
    **dict.fromkeys(("Entry", "EntryFilter", "Role", "Usage"), "entry"),
    **dict.fromkeys(("ChunkRule", "Fingerprint", "Namespace", "StateKey", "plan"), "keys"),
    **dict.fromkeys(("Found", "Identity", "PutOutcome", "StateStore"), "store"),
    "State": "schema",
    "StateStoreError": "errors",
    "open_store": "settings",
}


def __getattr__(name: str) -> object:
    if name not in _PLACES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value: object = getattr(import_module(f"{__name__}.{_PLACES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
