"""Bundles to install into."""

from pathlib import Path

import pytest

from support.bundles import make_bundle


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    """A bundle as RunCVM ships it, but without a Python: the one in PATH serves."""
    return make_bundle(tmp_path / "opt/runcvm")


@pytest.fixture
def whole(tmp_path: Path) -> Path:
    """A bundle with a Python of its own."""
    return make_bundle(tmp_path / "opt/runcvm", python=True)
