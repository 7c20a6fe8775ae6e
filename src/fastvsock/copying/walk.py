"""The walk of a source: each entry once, a folder's files before its folders, nothing sorted and nothing remembered.

What it holds is a descriptor of the folder in hand, and the names of the folders that are still to be entered on the
way down; a folder with a million files is read as it goes. A folder that is replaced meanwhile is noticed (folders.py).
"""

import errno
import os
import stat

from . import entries
from .entries import Fault
from .folders import DIRECTORY, Folder, Shelf

TYPE_CHECKING = False
if TYPE_CHECKING:
    import re
    from collections.abc import Iterator, Sequence

    Found = tuple[int, Folder, bytes, "os.stat_result | Fault | None"]


class Filter:
    """What is to be left out. A pattern without a slash is for names, one with a slash for paths from the source on."""

    def __init__(self, patterns: "Sequence[bytes]") -> None:
        texts = [os.fsdecode(pattern).rstrip("/") for pattern in patterns]
        self._names = _matcher([text for text in texts if "/" not in text])
        self._paths = _matcher([text.lstrip("/") for text in texts if "/" in text])

    def excludes(self, source: Folder, folder: Folder, name: bytes) -> bool:
        """Whether the entry `name` of `folder` is to be left out; `source` is where the walk began."""
        if self._names and self._names.match(os.fsdecode(name)):
            return True
        return bool(self._paths and self._paths.match(os.fsdecode(_below(source, folder, name))))


def _matcher(patterns: "list[str]") -> "re.Pattern[str] | None":
    if not patterns:
        return None
    import re
    from fnmatch import translate

    return re.compile("|".join(map(translate, patterns)))


def _below(source: Folder, folder: Folder, name: bytes) -> bytes:
    names = [name]
    while folder is not source:
        names.append(folder.name)
        assert folder.parent is not None
        folder = folder.parent
    return b"/".join(reversed(names))


class Walk:
    """The walk of one source. Iterating gives (kind, folder, name, status): see `Found`.

    The kinds are those of entries.py. A status is there for what is not a regular file, and for files too if `look`
    says so; else opening the file will give it. NOTE has a `Fault` in its place, and no name where it is about the
    folder itself.
    """

    def __init__(self, shelf: Shelf, filter: Filter, *, look: bool) -> None:
        self._shelf, self._filter, self._look = shelf, filter, look

    def entry(self, folder: Folder, name: bytes, *, follow: bool) -> "Iterator[Found]":
        """Walk the entry `name` of `folder`, itself or, with `follow`, what it is a link to."""
        try:
            status = os.stat(name, dir_fd=folder.fd, follow_symlinks=follow or self._shelf.follow)
        except OSError as error:
            yield entries.NOTE, folder, name, Fault(entries.READ, error.errno or 0)
            return
        if stat.S_ISDIR(status.st_mode):
            top = folder.child(name)
            top.follows = top.follows or follow
            yield from self.tree(top, status)
        elif follow:  # because of a slash behind its name
            yield entries.NOTE, folder, name, Fault(entries.READ, errno.ENOTDIR)
        else:
            yield self._one(folder, name, status)

    def _one(self, folder: Folder, name: bytes, status: os.stat_result) -> "Found":
        """What is to be done with an entry that is not a folder."""
        if stat.S_ISREG(status.st_mode):
            return entries.FILE, folder, name, status
        if stat.S_ISLNK(status.st_mode):
            return entries.SYMLINK, folder, name, status
        if stat.S_ISFIFO(status.st_mode):
            return entries.FIFO, folder, name, status
        return entries.NOTE, folder, name, Fault(entries.LEFT_OUT, 0)

    def tree(self, top: Folder, status: os.stat_result) -> "Iterator[Found]":
        """Walk the folder `top`, which has this status."""
        self._top = top
        to_do: list[tuple[Folder, os.stat_result | None]] = [(top, status)]
        while to_do:
            folder, known = to_do.pop()
            if known is None:
                yield entries.LEAVE, folder, b"", None
                folder.close()
                continue
            yield entries.ENTER, folder, b"", known
            to_do.append((folder, None))
            below: list[tuple[Folder, os.stat_result | None]] = []
            yield from self._list(folder, below)
            to_do += reversed(below)

    def _list(self, folder: Folder, below: "list[tuple[Folder, os.stat_result | None]]") -> "Iterator[Found]":
        """A folder's entries; those that are folders go to `below`."""
        try:
            listing = os.open(b".", DIRECTORY, dir_fd=folder.fd)
        except OSError as error:
            yield entries.NOTE, folder, b"", Fault(entries.READ, error.errno or 0)
            return
        try:
            with os.scandir(listing) as found:
                for entry in found:
                    name = os.fsencode(entry.name)
                    if not self._filter.excludes(self._top, folder, name):
                        yield from self._sort(folder, name, entry, below)
        except OSError as error:
            yield entries.NOTE, folder, b"", Fault(entries.READ, error.errno or 0)
        finally:
            os.close(listing)

    def _sort(
        self,
        folder: Folder,
        name: bytes,
        entry: "os.DirEntry[str]",
        below: "list[tuple[Folder, os.stat_result | None]]",
    ) -> "Iterator[Found]":
        if len(name) > entries.MAX_NAME:
            yield entries.NOTE, folder, name, Fault(entries.READ, errno.ENAMETOOLONG)
            return
        if not self._look and entry.is_file(follow_symlinks=False):
            yield entries.FILE, folder, name, None
            return
        try:
            status = entry.stat(follow_symlinks=self._shelf.follow)
        except OSError as error:
            yield entries.NOTE, folder, name, Fault(entries.READ, error.errno or 0)
            return
        if not stat.S_ISDIR(status.st_mode):
            yield self._one(folder, name, status)
        elif folder.depth + 1 > entries.MAX_DEPTH:
            yield entries.NOTE, folder, name, Fault(entries.READ, errno.ENAMETOOLONG)
        elif folder.is_inside((status.st_dev, status.st_ino)):
            yield entries.NOTE, folder, name, Fault(entries.READ, errno.ELOOP)  # links that are followed
        else:
            below.append((folder.child(name), status))


def split_source(path: bytes) -> tuple[bytes, bytes]:
    """The folder that a source is in, and its name there; no name where the contents of a folder are meant."""
    name = os.path.basename(path.rstrip(b"/"))
    if name in (b"", b".", b".."):
        return path or b".", b""
    return os.path.dirname(path.rstrip(b"/")) or b".", name


def data_stretches(fd: int, offset: int, size: int) -> "Iterator[tuple[int, int]]":
    """Where a file has data from `offset` on: beginnings and ends; what lies between is holes. Raises `OSError`."""
    while offset < size:
        try:
            start = os.lseek(fd, offset, os.SEEK_DATA)
            end = min(os.lseek(fd, start, os.SEEK_HOLE), size)
        except OSError as error:
            if error.errno == errno.ENXIO:  # nothing but a hole is left
                return
            if error.errno != errno.EINVAL:
                raise
            start, end = offset, size  # a file system that does not say
        if start >= size:
            return
        yield start, end
        offset = end
