"""Disks that fail in the middle of a file: the file is named, nothing half has its name, and the rest is copied."""

import errno
import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from support.channels import Guest
from support.copying import cp, cp_on_a_failing_disk


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A file that fails, and one that does not."""
    (tmp_path / "from").mkdir()
    (tmp_path / "from" / "big").write_bytes(bytes(4 << 20))
    (tmp_path / "from" / "little").write_bytes(b"little")
    return tmp_path / "from"


@contextmanager
def tmpfs(folder: Path, options: str) -> Iterator[None]:
    folder.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", options, "none", folder], check=False).returncode:
        pytest.skip("this machine: no right to mount a tmpfs")
    try:
        yield
    finally:
        subprocess.run(["umount", folder], check=True)


def test_a_full_disk_is_told_by_name_and_what_fits_is_there(
    tmp_path: Path, guest: Guest, engine: str, tree: Path
) -> None:
    small = tmp_path / "disk"
    with tmpfs(small, "size=1m"):
        for words in ((tree, f":{small}/put"), (f":{tree}", small / "get")):
            done = cp(guest, *words, engine=engine)
            sentence = f"fastvsock: {words[0]}/big: cannot write: No space left on device\n".encode()
            assert (done.returncode, done.stderr) == (1, sentence)
        for name in "put", "get":
            assert [path.name for path in (small / name).iterdir()] == ["little"]


def test_a_disk_without_inodes_is_told_by_name(tmp_path: Path, guest: Guest, engine: str, tree: Path) -> None:
    small = tmp_path / "disk"
    (tree / "big").unlink()
    with tmpfs(small, "nr_inodes=2"):
        for words in ((tree, f":{small}/put"), (f":{tree}", small / "get")):
            done = cp(guest, *words, engine=engine)
            assert done.returncode == 1
            assert f"fastvsock: {words[0]}/little: cannot create: No space left on device\n".encode() in done.stderr
            subprocess.run(f"rm -rf {small}/*", shell=True, check=True)


@pytest.mark.parametrize("number", [errno.EDQUOT, errno.EIO])
def test_a_quota_and_a_write_error_are_told_by_name(
    tmp_path: Path, guest: Guest, engine: str, tree: Path, number: int
) -> None:
    done = cp_on_a_failing_disk(number, guest, f":{tree}", tmp_path / "back", engine=engine)
    sentence = f"fastvsock: :{tree}/big: cannot write: {os.strerror(number)}\n".encode()
    assert (done.returncode, done.stderr) == (1, sentence)
    assert [path.name for path in (tmp_path / "back").iterdir()] == ["little"]


def test_a_read_error_is_told_by_name(tmp_path: Path, guest: Guest, engine: str, tree: Path) -> None:
    done = cp_on_a_failing_disk(errno.EIO, guest, tree, f":{tmp_path}/there", engine=engine)
    sentence = f"fastvsock: {tree}/big: cannot read: Input/output error\n".encode()
    assert (done.returncode, done.stderr) == (1, sentence)
    assert [path.name for path in (tmp_path / "there").iterdir()] == ["little"]
