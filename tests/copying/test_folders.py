"""Folders by descriptors: no link is followed, no other folder is taken for one, and few are open at a time."""

import errno
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from fastvsock.copying import folders
from fastvsock.copying.folders import Folder, Shelf


@pytest.fixture(params=["openat2", "step by step"])
def root(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Folder]:
    """A folder that all of a copy stays in, by each of the two ways to open what is below it."""
    shelf = Shelf(native=request.param == "openat2")
    fd = os.open(tmp_path, os.O_RDONLY)
    yield Folder(shelf, b"root", root=fd)
    shelf.close_all()
    os.close(fd)


def chain(root: Folder, path: Path, depth: int) -> Folder:
    folder = root
    for _ in range(depth):
        path /= "d"
        path.mkdir()
        folder = folder.child(b"d")
    return folder


def test_a_folder_below_others_is_opened_through_them(root: Folder, tmp_path: Path) -> None:
    folder = chain(root, tmp_path, 5)
    assert os.fstat(folder.fd).st_ino == tmp_path.joinpath(*["d"] * 5).stat().st_ino
    assert folder.path(b"x") == b"root/d/d/d/d/d/x"


@pytest.mark.parametrize("level", [0, 2, 4])
def test_a_link_on_the_way_is_not_followed(root: Folder, tmp_path: Path, level: int) -> None:
    folder = chain(root, tmp_path, 5)
    replaced = tmp_path.joinpath(*["d"] * (level + 1))
    replaced.rename(tmp_path / "away")
    replaced.symlink_to(tmp_path / "away")
    with pytest.raises(OSError) as caught:  # noqa: PT011
        folder.fd  # noqa: B018
    assert caught.value.errno in (errno.ELOOP, errno.ENOTDIR)


def test_another_folder_with_the_same_name_is_noticed(root: Folder, tmp_path: Path) -> None:
    folder = chain(root, tmp_path, 3)
    assert folder.fd >= 0
    folder.close()
    (tmp_path / "d" / "d" / "d").rename(tmp_path / "away")
    (tmp_path / "d" / "d" / "d").mkdir()
    with pytest.raises(OSError) as caught:  # noqa: PT011
        folder.fd  # noqa: B018
    assert caught.value.errno == errno.ESTALE


def test_few_descriptors_are_open(root: Folder, tmp_path: Path) -> None:
    before = len(os.listdir("/proc/self/fd"))
    deepest = chain(root, tmp_path, 300)
    for _ in range(2):
        folder: Folder | None = deepest
        while folder is not None:
            assert folder.fd >= 0
            folder = folder.parent
    assert len(os.listdir("/proc/self/fd")) - before <= folders.OPEN_AT_ONCE


def test_the_kernel_may_lack_openat2(monkeypatch: pytest.MonkeyPatch, root: Folder, tmp_path: Path) -> None:
    native = pytest.importorskip("fastvsock.copying._openat2")

    def missing(path: bytes, flags: int, folder: int) -> int:
        raise OSError(errno.ENOSYS, "")

    monkeypatch.setattr(native, "open_beneath", missing)
    (tmp_path / "a").mkdir()
    (tmp_path / "b").symlink_to("a")
    open_below = folders.opener(native=True)
    os.close(open_below(b"a", folders.DIRECTORY, root.fd))
    with pytest.raises(OSError):  # noqa: PT011
        open_below(b"b", folders.DIRECTORY, root.fd)


@pytest.mark.parametrize("path", [b"..", b"../x", b"/", b"/etc"])
def test_openat2_stays_below(root: Folder, path: bytes) -> None:
    native = pytest.importorskip("fastvsock.copying._openat2")
    with pytest.raises(OSError) as caught:  # noqa: PT011
        native.open_beneath(path, folders.DIRECTORY, root.fd)
    assert caught.value.errno in (errno.EXDEV, errno.ENOSYS)
