"""FASTVSOCK_REQUIRE_ALL=1, which continuous integration sets: a test that lacks a tool fails, and does not skip."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from support import HANG, ROOT

SKIPS = """
import pytest

def test_that_needs_a_program():
    pytest.skip("socat is not installed")

@pytest.mark.skipif(True, reason="strace is not installed")
def test_that_is_marked():
    pass

@pytest.mark.parametrize("nothing", [])
def test_without_parameters(nothing):
    pass

@pytest.fixture
def tool():
    pytest.skip("dropbear is not installed")

def test_whose_fixture_skips(tool):
    pass

@pytest.mark.xfail(reason="a known fault")
def test_that_is_expected_to_fail():
    raise AssertionError
"""
ACCEPTED = """
import pytest

@pytest.mark.parametrize("start", ["by design: ", "this machine: "])
def test_that_may_skip(start):
    pytest.skip(f"{start}a reason")
"""


def ran(folder: Path, text: str, required: str) -> tuple[int, str]:
    """The exit status of pytest for one file with `text`, under the hooks of our conftest, and what it printed."""
    file = folder / "test_skipping.py"
    file.write_text(text)
    words = ["-m", "pytest", "-p", "conftest", "-p", "no:cacheprovider", "-c", os.devnull, "--rootdir", str(folder)]
    env = os.environ | {"FASTVSOCK_REQUIRE_ALL": required, "PYTHONPATH": str(ROOT / "tests")}
    done = subprocess.run(
        [sys.executable, *words, file], env=env, capture_output=True, text=True, timeout=HANG, check=False
    )
    return done.returncode, done.stdout + done.stderr


def test_a_test_that_lacks_a_tool_fails(tmp_path: Path) -> None:
    status, printed = ran(tmp_path, SKIPS, "1")
    assert (status, "1 failed, 1 xfailed, 3 errors" in printed) == (1, True), printed
    for missing in ("socat is not installed", "strace is not installed", "dropbear is not installed", "got empty"):
        assert f"skipped ({missing}" in printed


@pytest.mark.parametrize(
    "text", ["import pytest; pytest.importorskip('absent')", "import pytest; pytest.skip('x', allow_module_level=True)"]
)
def test_a_module_that_lacks_a_package_fails(text: str, tmp_path: Path) -> None:
    status, printed = ran(tmp_path, text, "1")
    assert status == pytest.ExitCode.INTERRUPTED
    assert "FASTVSOCK_REQUIRE_ALL=1" in printed


def test_an_accepted_reason_still_skips(tmp_path: Path) -> None:
    status, printed = ran(tmp_path, ACCEPTED, "1")
    assert (status, "2 skipped" in printed) == (0, True), printed


@pytest.mark.parametrize("required", ["", "0"])
def test_without_the_variable_every_test_may_skip(required: str, tmp_path: Path) -> None:
    status, printed = ran(tmp_path, SKIPS, required)
    assert (status, "4 skipped, 1 xfailed" in printed) == (0, True), printed
