"""Where a copy goes: what its own user has named is followed as cp(1) does, and nothing that the other end sends."""

import errno
import os
import stat

from . import entries
from .folders import DIRECTORY

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence


class TargetFault(Exception):  # each end has an error of its own for it
    """The target cannot be used: the arguments are an errno, and the path that it is about."""


class Target:
    """Where a copy goes. `names` are what the sources are called in it if it is a folder; None for their contents.

    The rules are those of `docker cp` and cp(1): into a folder that exists, under their own names; else under the name
    of the target. A file goes where a symbolic link leads that is the target itself, and is written to a device or a
    FIFO that is (`is_stream`). Opens the folder that all of it stays in. Raises `TargetFault`.
    """

    def __init__(self, path: bytes, names: "Sequence[bytes | None]") -> None:
        self.path, self.names = path, list(names)
        self.needs_folder = False  # because of a slash behind its name
        self.is_link = self.is_stream = False
        self.root = self._followed = -1
        try:
            self.root = self._open()
        except OSError as error:
            raise TargetFault(error.errno or 0, path) from None

    def _open(self) -> int:
        mode = 0
        try:
            mode = os.stat(self.path).st_mode  # the kernel may refuse a link that somebody else has put into /tmp
        except FileNotFoundError:
            self.needs_folder = self.path.endswith(b"/")
            if len(self.names) > 1:
                raise
        if stat.S_ISDIR(mode):
            return os.open(self.path, DIRECTORY)
        if len(self.names) > 1:
            raise OSError(errno.ENOTDIR, "")
        above, name = os.path.split(self.path.rstrip(b"/"))
        if not entries.is_name(name):
            raise OSError(errno.ENOENT, "")
        self.names = [name]
        self.is_stream = stat.S_ISCHR(mode) or stat.S_ISBLK(mode) or stat.S_ISFIFO(mode)
        self.is_link = not (self.is_stream or self.needs_folder) and os.path.islink(self.path)
        return os.open(above or b".", DIRECTORY)

    def follow(self) -> tuple[int, bytes]:
        """The folder and the name that the target, a link, leads to. Raises `OSError`."""
        above, name = os.path.split(os.path.realpath(self.path))
        if self._followed < 0:
            self._followed = os.open(above, DIRECTORY)
        return self._followed, name

    def fsync(self) -> None:
        """Let the disk have the names in its folder. Raises `OSError`."""
        os.fsync(self.root)
        if self._followed >= 0:
            os.fsync(self._followed)

    def close(self) -> None:
        """Close the folder."""
        os.close(self.root)
        if self._followed >= 0:
            os.close(self._followed)
