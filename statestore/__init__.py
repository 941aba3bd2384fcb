"""A store for RWKV states: content-addressed, exact, crash-safe. Needs no torch.

>>> from statestore import open_store
>>> with open_store("file:///tmp/states") as store:  # doctest: +SKIP
...     store.usage().entries
0
"""

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
