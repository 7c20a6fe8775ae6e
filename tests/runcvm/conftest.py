"""Bundles to install into."""

import shutil
from pathlib import Path

import pytest

from support import ROOT
from support.bundles import make_bundle


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    """A bundle as RunCVM ships it, but without a Python: the one in PATH serves."""
    return make_bundle(tmp_path / "opt/runcvm")


@pytest.fixture
def whole(tmp_path: Path) -> Path:
    """A bundle with a Python of its own."""
    return make_bundle(tmp_path / "opt/runcvm", python=True)


@pytest.fixture(scope="session")
def binary(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The static binary of this source, as it is released."""
    if not (ROOT / "wheels" / "static").is_dir():
        pytest.skip("by design: a source distribution has no sources of the binary")
    from support import binaries
    from wheels.static import build

    machine = binaries.machine()
    binaries.require(build.SHIPPED, machine)
    return build.link(machine, tmp_path_factory.mktemp("binary")).path


@pytest.fixture
def no_python(tmp_path: Path) -> dict[str, str]:
    """An environment in which there is a shell, but no Python."""
    folder = tmp_path / "no python"
    folder.mkdir()
    for name in ("sh", "bash", "busybox", "cat", "readlink", "tr"):
        found = shutil.which(name)
        assert found, f"{name} is needed for this test"
        (folder / name).symlink_to(found)
    return {"PATH": str(folder)}
