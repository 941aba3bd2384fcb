"""Alembic's environment. Knows the tables and nothing else of the application.

A catalog that is being opened hands over its own connection, inside a transaction that already
holds the write lock. From a shell, to write a new revision::

    alembic -x url=sqlite:////tmp/catalog.sqlite3 upgrade head
    alembic -x url=sqlite:////tmp/catalog.sqlite3 revision --autogenerate -m "what changes"
"""

from __future__ import annotations

from alembic import context
from sqlalchemy import Connection, create_engine

from statestore.tables import ONLY_ON, metadata


def migrate(connection: Connection) -> None:
    """Run the pending revisions over `connection`."""
    dialect = connection.dialect.name
    context.configure(
        connection=connection,
        target_metadata=metadata,
        render_as_batch=True,  # SQLite alters a table by copying it
        compare_type=True,
        include_object=lambda item, *_: item.info.get(ONLY_ON, dialect) == dialect,
    )
    with context.begin_transaction():
        context.run_migrations()


def migrate_from_shell() -> None:
    """Connect to the ``-x url=`` of the command line, then migrate."""
    url = context.get_x_argument(as_dictionary=True).get("url")
    if not isinstance(url, str):
        raise SystemExit("which catalog? alembic -x url=sqlite:////path/catalog.sqlite3 ...")
    engine = create_engine(url)
    with engine.begin() as connection:
        migrate(connection)
    engine.dispose()


given = context.config.attributes.get("connection")
if isinstance(given, Connection):
    migrate(given)
else:
    migrate_from_shell()
