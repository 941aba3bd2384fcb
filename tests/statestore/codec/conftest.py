"""What a module of tests asks for that is to run with each kernel."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from statestore.codec import kernel
from statestore.native.behind import Behind

SETTLED_S = 120.0


@pytest.fixture(params=["native", "numpy"], scope="module")
def in_use(request: pytest.FixtureRequest) -> Iterator[kernel.Planes]:
    """What splits and merges planes in this module's tests."""
    compiled = kernel.settled(SETTLED_S)
    assert compiled.name == "native", "these tests need a C compiler: install gcc"
    wanted = compiled if request.param == "native" else kernel.NUMPY
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(kernel, "_NATIVE", Behind(lambda: wanted, lambda _: wanted))
        yield wanted
