"""Says of most keys that no entry has them, without asking the catalog: a filter for all processes.

A lookup of a long prompt asks for thousands of keys, of which one or none is stored. A Bloom
filter in a mapped file beside the SQLite catalog knows, so the catalog is asked for the rest.

* **What is committed is noted.** Bits are set inside the transaction that admits an entry, before
  its commit, and by nobody else: SQLite lets one writer in at a time, over all processes. A writer
  that dies between leaves bits too many, which cost a question each.
* **A generation is begun empty**, inside a transaction that also writes its number into the catalog
  (``user_version``), and put in place at once, so that all who write from then on note in it. It is
  not believed until whoever began it has read all digests and added them, again inside a
  transaction. Who dies at it is replaced after `_OVERDUE_S` and more.
* **Nothing else is believed**: not a file of another boot, not a copy, not one whose number is not
  the catalog's (a backup was put back, a former release wrote). That is looked at every
  `_CHECKED_S`; that the file was neither replaced nor removed, at every lookup. Without one the
  catalog is asked for all keys. A filter that lacks an entry would cost its computing, and never
  give a wrong state.
* **Removed entries** stay noted until the filter is too full and a new generation is begun. Who
  begins it: a put where there are few entries; else a thread, of a process that stays; `sweep`.
"""

from __future__ import annotations

import logging
import os
import secrets
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from operator import attrgetter
from pathlib import Path
from typing import Any, Final

import numpy as np
from sqlalchemy import Connection, Select, bindparam, column, func, select, table

from statestore.backends.sql import totals
from statestore.backends.sql.bloom import (
    FEW,
    HASH_BYTES,
    Hashes,
    add,
    hashes,
    hashes_of_hex,
    passing,
    passing_of_few,
)
from statestore.backends.sql.database import Database
from statestore.backends.sql.filter_file import FilterFile
from statestore.backends.sql.rows import DIGEST_BYTES
from statestore.blobs.filesystem import storage_error
from statestore.errors import BackendError
from statestore.keys import StateKey
from statestore.tables import entries

log = logging.getLogger(__name__)

_MIN_LOG2: Final = 12  # words: 36 KiB of file
_FULL: Final = 2  # digests noted for a word: then a new generation
_FEW: Final = 8192  # entries: read in a few milliseconds
_PATIENT_LOOKUPS: Final = 16  # without a filter, before a process reads all digests for one
_CHECKED_S: Final = 1.0
_OVERDUE_S: Final = 30.0
_WORDS_PER_S: Final = 1 << 16  # a twentieth of what an idle processor fills
_RETRY_S: Final = 60.0
_PAGE: Final = 8192  # digests
_DIGEST: Final = attrgetter("digest")
_SAMPLE: Final = 256

_GENERATION: Final[Select[Any]] = select(column("user_version")).select_from(
    table("pragma_user_version")
)


def _digests(limit: int) -> Select[Any]:
    """The beginnings of the digests after one, as one text (a row each would take the
    interpreter's lock each), the last of them, and their number.
    """
    after = (entries.c.digest > bindparam("after"), func.length(entries.c.digest) == DIGEST_BYTES)
    page = select(entries.c.digest).where(*after).order_by(entries.c.digest).limit(limit).subquery()
    beginning = func.substr(func.hex(page.c.digest), 1, 2 * HASH_BYTES)
    return select(func.group_concat(beginning, ""), func.max(page.c.digest), func.count())


_PAGE_OF_DIGESTS: Final = _digests(_PAGE)
_SAMPLE_OF_DIGESTS: Final = _digests(_SAMPLE)


class LookupFilter:
    """The filter of the SQLite catalog `database`, in the file `path`. Safe to use from threads.

    Nothing here raises because of the filter, but for `note`.
    """

    def __init__(self, path: Path, database: Database) -> None:
        self._path = path
        self._database = database
        self._file: FilterFile | None = None
        self._checked: FilterFile | None = None
        self._checked_at = 0.0
        self._without = 0  # lookups
        self._retry_at = 0.0
        self._builder: threading.Thread | None = None  # a forked child sees that it has ended
        self._closed = False

    def passing(self, keys: Sequence[StateKey]) -> Sequence[StateKey]:
        """Those of `keys` that may be stored, in their order; all of them without a filter."""
        file = None if self._closed else self._usable()
        if file is not None:
            digests = map(_DIGEST, keys)
            if len(keys) <= FEW:
                places = passing_of_few(file.words_one_by_one, digests)
            else:
                places = passing(file.words, hashes(digests))
            return [keys[at] for at in places]
        self._without += 1
        if self._without >= _PATIENT_LOOKUPS:
            self._without = 0
            self.tend()
        return keys

    def lacks(self, digest: bytes) -> bool:
        """Whether the filter is wrong about an entry that is there."""
        file = self._usable()
        return file is not None and not passing(file.words, hashes([digest]))

    def note(self, digest: bytes) -> None:
        """An entry is about to be committed, by the transaction that the caller is in.

        Raises:
            UnavailableError: there is a filter that others may believe, and it can be neither
                written nor removed.
        """
        file = self._in_place()
        if file is None:
            try:
                self._path.unlink(missing_ok=True)
            except IsADirectoryError:
                return  # nobody believes that
            except OSError as error:
                raise storage_error(error, f"removing {self._path}") from error
        else:
            file.count(add(file.words, hashes([digest])))

    def tend(self) -> None:
        """Begin a new generation if one is due: here if it is quickly done, else in a thread."""
        if not self._due() or time.monotonic() < self._retry_at:
            return
        self._retry_at = time.monotonic() + _RETRY_S
        try:
            few = self._database.read(totals.usage).entries <= _FEW
        except BackendError:
            return
        if not few:
            threading.Thread(target=self.build, name="lookup filter", daemon=True).start()
        elif self.build():
            self._retry_at = 0.0

    def mend(self) -> bool:
        """Whether it was right, as far as a sample tells; if not, or none is usable, it is made
        anew.
        """
        right = self._is_right()
        if not right or self._due():
            self.build()
        return right

    def hidden(self) -> int:
        """How many entries of the catalog lookups do not find, because it lacks them. Raises as
        `Database.read`.
        """
        file = self._usable()
        if file is None:
            return 0
        after, lacking, count = b"", 0, 1
        while count:
            found, after, count = self._page(_PAGE_OF_DIGESTS, after)
            lacking += count - len(passing(file.words, found))
        return lacking if self._usable() is file else 0  # what came since is in its successor

    def build(self) -> bool:
        """Make a new generation; ``False``: it failed, or somebody else makes one."""
        if self._builder is not None and self._builder.is_alive():
            return False
        self._builder = threading.current_thread()
        try:
            return self._complete(self._database.write(self._begin))
        except (OSError, BackendError) as error:
            if not self._closed:
                log.warning("lookups go without a filter: %s: %s", self._path, error)
            return False
        finally:
            self._builder = None

    def close(self) -> None:
        """End the thread that makes a filter, if one does; lookups go without."""
        self._closed = True
        builder = self._builder
        if builder is not None and builder is not threading.current_thread():
            builder.join()
        self._file = self._checked = None

    def _in_place(self) -> FilterFile | None:
        """The file that is in place, if it can be mapped."""
        file = self._file
        if file is None or not file.is_at(self._path):
            file = None
            with suppress(OSError, ValueError):
                file = FilterFile.map(self._path)
            self._file = file
        return file

    def _usable(self) -> FilterFile | None:
        """The file in place, if all entries are in it."""
        file = self._file
        if file is None or not file.is_linked():
            file = self._in_place()
        if file is None or not (file.believable and file.complete):
            return None
        now = time.monotonic()
        if self._checked is not file or now - self._checked_at > _CHECKED_S:
            try:
                ((generation,),) = self._database.rows(_GENERATION, {})
            except BackendError:
                return None
            if generation != file.generation:
                return None
            self._checked, self._checked_at = file, now
        return file

    def _due(self) -> bool:
        file = self._usable()
        if file is None:
            return not self._begun_by_another()
        return file.noted > _FULL * len(file.words)

    def _begun_by_another(self) -> bool:
        file = self._in_place()
        if file is None or file.complete or not file.believable:
            return False
        overdue_s = _OVERDUE_S + len(file.words) / _WORDS_PER_S
        return 0 <= time.monotonic() - file.begun_s < overdue_s

    def _is_right(self) -> bool:
        file = self._usable()
        if file is None:
            return True
        try:
            found, _, count = self._page(_SAMPLE_OF_DIGESTS, os.urandom(DIGEST_BYTES))
            if count < _SAMPLE:
                found, _, count = self._page(_SAMPLE_OF_DIGESTS, b"")
        except BackendError:
            return True
        return len(passing(file.words, found)) == count

    def _begin(self, connection: Connection) -> FilterFile:
        """An empty file in place, and its number in the catalog."""
        log2 = max(_MIN_LOG2, (totals.usage(connection).entries - 1).bit_length())
        generation = 1 + secrets.randbelow(2**31 - 1)
        new = self._path.with_name(self._path.name + ".new")
        try:
            file = FilterFile.create(new, log2, generation)
            new.replace(self._path)
        except OSError:
            new.unlink(missing_ok=True)
            raise
        connection.exec_driver_sql(f"PRAGMA user_version={generation}")
        return file

    def _complete(self, file: FilterFile) -> bool:
        """Add all digests of the catalog to a file in place."""
        words = np.zeros_like(file.words)
        after, noted, count = b"", 0, 1
        while count:
            if self._closed:
                return False
            found, after, count = self._page(_PAGE_OF_DIGESTS, after)
            noted += add(words, found)

        def publish(connection: Connection) -> bool:
            named = connection.scalar(_GENERATION)
            if named != file.generation or not file.is_at(self._path):
                return False  # another one was begun meanwhile
            file.complete_with(words, noted)
            return True

        return self._database.write(publish)

    def _page(self, statement: Select[Any], after: bytes) -> tuple[Hashes, bytes, int]:
        ((text, last, count),) = self._database.rows(statement, {"after": after})
        return hashes_of_hex(text or ""), last or after, count
