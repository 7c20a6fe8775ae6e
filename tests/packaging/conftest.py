"""A Python of its own to build with."""

import sys
from pathlib import Path

import pytest

from support.packages import PROJECT, run


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
