"""Small files are written without a lock, and with those attributes alone set that are not right already."""

import os
import stat
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from fastvsock.copying import entries, small
from fastvsock.copying.entries import Entry, Fault
from fastvsock.copying.options import Options
from fastvsock.copying.target import Target
from fastvsock.copying.tree import Tree
from support.copying import leftovers

UID, GID = os.geteuid(), os.getegid()


@pytest.fixture
def tree(tmp_path: Path) -> Iterator[Tree]:
    with closing(Target(os.fsencode(tmp_path), [b"file"])) as target:
        tree = Tree(target, Options(), native=False)
        tree.begin_source(0)
        yield tree


def write(tree: Tree, content: bytes, entry: Entry) -> None:
    entry.size = len(content)
    tree.write_small(entry, memoryview(content), b"")


@pytest.mark.parametrize("mask", [0, 0o022, 0o277])
@pytest.mark.parametrize("mode", [0o400, 0o644, 0o666, 0o777])
def test_the_mode_is_the_source_s_whatever_the_umask(tree: Tree, tmp_path: Path, mask: int, mode: int) -> None:
    before = os.umask(mask)
    try:
        write(tree, b"content", Entry(b"file", mode, UID, GID, 7))
    finally:
        os.umask(before)
    found = (tmp_path / "file").stat()
    assert (stat.S_IMODE(found.st_mode), found.st_mtime_ns) == (mode, 7)
    assert (tmp_path / "file").read_bytes() == b"content"


def test_the_group_is_the_source_s_whatever_the_folder_gives(tree: Tree, tmp_path: Path) -> None:
    if os.geteuid():
        pytest.skip("this machine: only root gives files away")
    os.chown(tmp_path, -1, 4321)
    tmp_path.chmod(0o2755)
    write(tree, b"", Entry(b"file", 0o644, UID, GID))
    assert (tmp_path / "file").stat().st_gid == GID


def test_setuid_comes_with_its_owner(tree: Tree, tmp_path: Path) -> None:
    if os.geteuid():
        pytest.skip("this machine: only root gives files away")
    write(tree, b"#!", Entry(b"file", 0o6755, 1234, 1235))
    found = (tmp_path / "file").stat()
    assert (stat.S_IMODE(found.st_mode), found.st_uid, found.st_gid) == (0o6755, 1234, 1235)


def test_nobody_may_do_more_with_a_file_before_it_is_whole(tmp_path: Path) -> None:
    at = os.open(tmp_path, os.O_RDONLY)
    before = os.umask(0)
    for mode, is_ours, expected in (
        (0o4777, False, 0o600),
        (0o4755, True, 0o755),
        (0o640, True, 0o600),
        (0o664, True, 0o644),
        (0o604, True, 0o604),
    ):
        fd = small.create(at, b"%o-%d" % (mode, is_ours), Entry(b"file", mode, UID, GID), is_ours=is_ours)
        assert stat.S_IMODE(os.fstat(fd).st_mode) == expected
        os.close(fd)
    os.umask(before)
    os.close(at)


def test_what_another_copy_cleans_away_is_written_again(
    tree: Tree, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill = small.fill

    def fill_and_lose(fd: int, entry: Entry, content: memoryview, owner: bool) -> None:
        fill(fd, entry, content, owner)
        (left,) = leftovers(tmp_path)
        left.unlink()

    monkeypatch.setattr(small, "fill", fill_and_lose)
    write(tree, b"content", Entry(b"file", 0o644, UID, GID))
    assert (tmp_path / "file").read_bytes() == b"content"
    assert not leftovers(tmp_path)


@pytest.mark.parametrize("failure", [OSError(28, "full"), KeyboardInterrupt()])
def test_nothing_is_left_of_a_file_that_could_not_be_written(
    tree: Tree, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failure: BaseException
) -> None:
    def fail(*arguments: object) -> None:
        raise failure

    monkeypatch.setattr(small, "fill", fail)
    with pytest.raises((Fault, KeyboardInterrupt)) as found:
        write(tree, b"content", Entry(b"file", 0o644, UID, GID))
    if isinstance(failure, OSError):
        assert found.value.args == (entries.WRITE, 28)
    assert not list(tmp_path.iterdir())
