"""`make demo`, with a small tree."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from support import HANG
from support.ssh import missing_for_guest

DEMO = Path(__file__).parents[2] / "bench" / "demo.py"


def test_the_demo_ends_with_its_story_in_four_lines(tmp_path: Path) -> None:
    if not shutil.which("tar"):
        pytest.skip("tar is not installed")
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "file").write_bytes(b"content")
    (tmp_path / "large").write_bytes(bytes(300_000))
    done = subprocess.run(
        [sys.executable, DEMO, tmp_path], capture_output=True, text=True, timeout=2 * HANG, check=False
    )
    assert (done.returncode, done.stderr) == (0, ""), done.stderr
    assert done.stdout.startswith(f"tree: 2 files, 0.3 MB, from {tmp_path}, in /")
    assert "all 2 files came back with the same SHA-256 each time" in done.stdout
    beside = "not installed" if missing_for_guest() else r" *\d+\.\d\d s, +\d+\.\d times as long"
    first, *lines = done.stdout.splitlines()[-4:]
    assert first == "In short, and what dbclient and dropbear take over the same connection:"
    for line, title in zip(lines, ("tar through the forwarder", "fastvsock cp", "fastvsock exec"), strict=True):
        assert re.fullmatch(rf"  .* by {title} +\d+\.\d\d s  {beside}", line), line
