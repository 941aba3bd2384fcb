"""What an admin's machine loads: no torch, ever, and no database before a store is opened."""

from __future__ import annotations

import subprocess
import sys

import statestore


def run_python(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


WITHOUT_TORCH = "import sys; sys.modules['torch'] = None; sys.modules['rwkv_runtime'] = None\n"


def test_the_package_imports_without_torch() -> None:
    run_python(WITHOUT_TORCH + "import statestore, statestore.cli, statestore.backends.sql.file")


def test_a_store_works_without_torch(tmp_path: object) -> None:
    code = f"import statestore\nprint(statestore.open_store({str(tmp_path)!r}).usage().entries)"
    assert run_python(WITHOUT_TORCH + code) == "0\n"


def test_importing_loads_no_database_and_no_terminal_library() -> None:
    heavy = "('sqlalchemy', 'alembic', 'redis', 'rich.console', 'torch')"
    code = (
        f"import sys, statestore, statestore.cli\nprint([m for m in {heavy} if m in sys.modules])"
    )
    assert run_python(code) == "[]\n"


def test_opening_a_store_that_is_up_to_date_loads_no_alembic(tmp_path: object) -> None:
    place = repr(str(tmp_path))
    opening = f"import sys, statestore\nstatestore.open_store({place}).close()\n"
    run_python(opening)
    assert run_python(opening + "print('alembic' in sys.modules)") == "False\n"


def test_the_public_names_are_sorted_and_present() -> None:
    assert statestore.__all__ == sorted(statestore.__all__)
    assert all(hasattr(statestore, name) for name in statestore.__all__)
