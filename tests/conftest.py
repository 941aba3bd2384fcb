"""What tests share: where the data from elsewhere lies, and the words for a test that could not
run.

Data from elsewhere is never part of the project: `--data DIR` or TEST_DATA names its
directory.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

settings.register_profile(
    "default",
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
settings.register_profile("nightly", settings.get_profile("default"), max_examples=1000)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "default"))


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--data",
        default=os.environ.get("TEST_DATA", ""),
        help="directory with data from elsewhere (a trained tiny RWKV-7, a production trace)",
    )


@pytest.fixture(scope="session")
def data_dir(request: pytest.FixtureRequest) -> Path:
    """The directory with data from elsewhere."""
    value = request.config.getoption("--data")
    if not value or not Path(value).is_dir():
        pytest.skip(f"not run: no data at {value or '(set TEST_DATA or --data)'}")
    return Path(value)
