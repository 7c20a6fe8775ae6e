"""Folders, reached by descriptors alone: below its root, no path is ever looked up that somebody could have replaced.

A folder is opened by its name in its parent's descriptor, never through a symbolic link, and is the same folder each
time: its device and inode are compared. So a copy follows no link that was planted before a path, and does not leave
its root when somebody replaces a folder with a link in the middle. No path is too long either, since none is longer
than one name.

Few descriptors are open at a time, whatever the depth. One that was closed for another is opened again when it is
needed: with one openat2(2) for many names where the kernel has it, else one by one with O_NOFOLLOW.
"""

import errno
import os
from collections import OrderedDict

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

OPEN_AT_ONCE = 64
DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
LONGEST_PATH = 4000  # bytes of a path for one openat2(2): below PATH_MAX


def open_step_by_step(path: bytes, flags: int, folder: int) -> int:
    """Open `path` below the descriptor `folder`, each of its names with O_NOFOLLOW. Raises `OSError`."""
    names = path.split(b"/")
    at = folder
    try:
        for name in names:
            above, at = at, os.open(name, flags | os.O_NOFOLLOW, dir_fd=at)
            if above != folder:
                os.close(above)
    except BaseException:
        if at != folder:
            os.close(at)
        raise
    return at


def opener(native: bool) -> "Callable[[bytes, int, int], int]":
    """What opens a path below a folder here: openat2(2) if `native` and the kernel has it, else the names in turn."""
    if not native:
        return open_step_by_step
    try:
        from ._openat2 import open_beneath
    except ImportError:
        return open_step_by_step

    def open_either(path: bytes, flags: int, folder: int) -> int:
        try:
            return open_beneath(path, flags, folder)
        except OSError as error:
            if error.errno not in (errno.ENOSYS, errno.EPERM, errno.EAGAIN):
                raise
        return open_step_by_step(path, flags, folder)

    return open_either


class Shelf:
    """The descriptors of folders that are open, the one that was used last at the end.

    `follow` lets all folders of a source be symbolic links.
    """

    def __init__(self, *, native: bool, follow: bool = False) -> None:
        self.open_below = opener(native)
        self.follow = follow
        self._open: OrderedDict[Folder, int] = OrderedDict()

    def find(self, folder: "Folder") -> int:
        """Its descriptor, or -1."""
        fd = self._open.get(folder, -1)
        if fd >= 0:
            self._open.move_to_end(folder)
        return fd

    def put(self, folder: "Folder", fd: int) -> None:
        """Keep it, and close the one that has not been used for longest."""
        self._open[folder] = fd
        if len(self._open) > OPEN_AT_ONCE:
            os.close(self._open.popitem(last=False)[1])

    def close(self, folder: "Folder") -> None:
        """Close it, if it is open."""
        fd = self._open.pop(folder, -1)
        if fd >= 0:
            os.close(fd)

    def close_all(self) -> None:
        """Close all of them."""
        while self._open:
            os.close(self._open.popitem()[1])


class Folder:
    """A folder: the root, whose descriptor `root` stays open and is the caller's, or `name` in its `parent`.

    `follows` lets its name be a symbolic link.
    """

    __slots__ = ("_identity", "_root", "_shelf", "depth", "follows", "name", "parent")

    def __init__(self, shelf: Shelf, name: bytes, parent: "Folder | None" = None, root: int = -1) -> None:
        self._shelf, self._root = shelf, root
        self.name, self.parent = name, parent
        self.depth: int = parent.depth + 1 if parent else 0
        self.follows = shelf.follow
        self._identity: tuple[int, int] | None = None

    def child(self, name: bytes) -> "Folder":
        """The folder `name` in this one, which need not exist."""
        return Folder(self._shelf, name, self)

    @property
    def fd(self) -> int:
        """Its descriptor, for the next call only. Raises `OSError`; ESTALE where another folder has its name now."""
        if self._root >= 0:
            return self._root
        fd = self._shelf.find(self)
        return fd if fd >= 0 else self._open()

    def _open(self) -> int:
        below: list[Folder] = [self]
        folder = self.parent
        while folder is not None and folder._root < 0 and self._shelf.find(folder) < 0:
            below.append(folder)
            folder = folder.parent
        assert folder is not None
        fd = folder.fd
        while below:
            some = [below.pop()]
            length = len(some[0].name)
            while not some[-1].follows and below and length + len(below[-1].name) < LONGEST_PATH:
                length += 1 + len(below[-1].name)
                some.append(below.pop())
            fd = some[-1]._open_from(fd, b"/".join(folder.name for folder in some))
        return fd

    def _open_from(self, above: int, path: bytes) -> int:
        """Open it by its `path` from the descriptor `above`, and see whether it is the one that it was."""
        fd = os.open(path, DIRECTORY, dir_fd=above) if self.follows else self._shelf.open_below(path, DIRECTORY, above)
        status = os.fstat(fd)
        identity = status.st_dev, status.st_ino
        if self._identity not in (None, identity):
            os.close(fd)
            raise OSError(errno.ESTALE, os.strerror(errno.ESTALE))
        self._identity = identity
        self._shelf.put(self, fd)
        return fd

    def close(self) -> None:
        """Close its descriptor until it is needed again."""
        self._shelf.close(self)

    def path(self, name: bytes = b"") -> bytes:
        """The path of `name` in this folder, from the root's name on."""
        root, below = self.below_root(name)
        if not (below and root.name):
            return root.name or below or b"."
        return root.name + below if root.name.endswith(b"/") else root.name + b"/" + below

    def below_root(self, name: bytes = b"") -> "tuple[Folder, bytes]":
        """The root, and the path of `name` in this folder from there on."""
        names = [name] if name else []
        folder = self
        while folder.parent is not None:
            names.append(folder.name)
            folder = folder.parent
        return folder, b"/".join(reversed(names))

    def is_inside(self, identity: tuple[int, int]) -> bool:
        """Whether the folder with this device and inode is this one, or above it."""
        folder: Folder | None = self
        while folder is not None:
            if folder._identity == identity:
                return True
            folder = folder.parent
        return False
