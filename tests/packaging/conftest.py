"""A Python of its own to build with, and the wheel that it builds."""

import sys
from pathlib import Path

import pytest

from support.packages import PROJECT, TOLD, pip, run, source


@pytest.fixture(scope="session")
def build_python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The interpreter of a new environment with what `pyproject.toml` says a build requires, and nothing else."""
    environment = tmp_path_factory.mktemp("build") / "venv"
    made = run(sys.executable, "-m", "venv", "--without-pip", environment)
    assert made.returncode == 0, made.stdout
    python = environment / "bin" / "python"
    requires = PROJECT["build-system"]["requires"]
    installed = run(sys.executable, "-m", "pip", "--python", python, "install", "--quiet", *requires)
    assert installed.returncode == 0, installed.stdout
    return python


@pytest.fixture(scope="session")
def wheel(build_python: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel that a machine with a C compiler builds."""
    folder = tmp_path_factory.mktemp("wheel")
    built = pip(build_python, "wheel", "--wheel-dir", folder, source(folder / "src"), FASTVSOCK_REQUIRE_SPLICE="1")
    assert built.returncode == 0, built.stdout
    assert TOLD not in built.stdout
    (found,) = folder.glob("*.whl")
    return found
