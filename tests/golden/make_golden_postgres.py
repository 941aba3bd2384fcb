"""Makes ``tests/golden/catalog-<head>.sql``: PostgreSQL's own dump of a catalog of this revision.

Run once, when a revision is added, and commit the file; as `make_golden_catalog`, whose entries
are in it::

    python -m tests.golden.make_golden_postgres
"""

from __future__ import annotations

import tempfile
from pathlib import Path

from statestore.tables import HEAD
from tests.checkout import GOLDEN
from tests.golden.make_golden_catalog import write
from tests.places.postgres_servers import PostgresPlace

NOISE = ("--", "\\", "SET ", "SELECT pg_catalog.set_config")


def main() -> None:
    with tempfile.TemporaryDirectory() as directory:
        place = PostgresPlace(Path(directory))
        backend = place.open()
        write(backend)
        backend.close()
        options = ("--inserts", "--no-owner", "--no-privileges", "--no-comments", place.database)
        lines = place.server.program("pg_dump", *options).splitlines()
        place.drop()
    kept = [line for line in lines if line and not line.startswith(NOISE)]
    (GOLDEN / f"catalog-{HEAD}.sql").write_text("\n".join(kept) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
