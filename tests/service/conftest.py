"""Where a service may listen."""

from pathlib import Path

import pytest


@pytest.fixture(params=["127.0.0.1:0", "[::1]:0", "unix"])
def where(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """Each kind of address to listen on."""
    return f"unix:{tmp_path / 'listen'}" if request.param == "unix" else str(request.param)
