"""What of a source is at the target already: looked up in front of the copy, for the sender to leave it out."""

import os
import stat

from . import entries
from .digests import file_digest
from .entries import Entry, Fault
from .folders import Folder
from .options import Options
from .tree import Tree, leftovers, name_of, open_leftover

NO_DIGEST = bytes(entries.DIGEST_SIZE)


class Stage:
    """A folder that is looked at: None where there is none; `left` are the temporary names in it, until claimed."""

    def __init__(self, folder: "Folder | None") -> None:
        self.folder = folder
        self.left: list[bytes] = []
        try:
            self.left = leftovers(folder) if folder else []
        except OSError:
            pass  # it cannot be listed: there is nothing to go on with


class Look:
    """Follows the offers of a sender through the target of `tree`."""

    def __init__(self, tree: Tree, options: Options) -> None:
        self._tree, self._checksum = tree, options.checksum
        self._dry = options.dry_run
        self._stages: list[Stage] = []

    @property
    def depth(self) -> int:
        """How many folders the next offer is in, the root not counted."""
        return max(len(self._stages) - 1, 0)

    def enter(self, entry: Entry) -> None:
        """Look into a folder."""
        folder, name = self._find(entry)
        below = None
        if folder and name is None:
            below = folder
        elif folder and name:
            try:
                below = self._tree.find_folder(folder, name)
                below.fd  # noqa: B018 (opens it)
            except (OSError, Fault):
                below = None
        self._stages.append(Stage(below))

    def _find(self, entry: Entry) -> "tuple[Folder | None, bytes | None]":
        if not self._stages:
            self._stages.append(Stage(self._tree.root))
        if len(self._stages) == 1:
            return self._tree.root, self._tree.top
        return self._stages[-1].folder, entry.name

    def _find_file(self, entry: Entry) -> "tuple[Folder | None, bytes | None]":
        if self.depth:
            return self._find(entry)
        try:
            folder, name = self._tree.place_top_file()
        except Fault:
            return None, None
        if not self._stages:
            self._stages.append(Stage(folder))
        return folder, name

    def leave(self) -> None:
        """Be done with a folder: what is left in it of files that are not there any more is removed."""
        stage = self._stages.pop()
        if stage.folder:
            self._clean(stage.folder, stage.left)
            if stage.folder is not self._tree.root:
                stage.folder.close()

    def _clean(self, folder: Folder, names: "list[bytes]") -> None:
        for name in names:
            fd = -1 if self._dry else open_leftover(folder, name)
            if fd >= 0:
                try:
                    os.unlink(name, dir_fd=folder.fd)
                except OSError:
                    pass  # somebody else has removed it, or the folder cannot be written
                os.close(fd)

    def file(self, entry: Entry) -> bytes:
        """The verdict on a file: from where on it is missing."""
        folder, name = self._find_file(entry)
        offset, digest = 0, NO_DIGEST
        if folder and name:
            found = self._same(folder, name, entry)
            if found is None:
                offset = self._begun(folder, name, entry)
            else:
                offset, digest = found
        return offset.to_bytes(8, "big") + (digest if self._checksum else b"")

    def _same(self, folder: Folder, name: bytes, entry: Entry) -> "tuple[int, bytes] | None":
        """The verdict on a file with the size and the time of the source's, and its digest; None for another."""
        try:
            there = os.stat(name, dir_fd=folder.fd, follow_symlinks=False)
            if not stat.S_ISREG(there.st_mode) or (there.st_size, there.st_mtime_ns) != (entry.size, entry.mtime):
                return None
            verdict = entries.NOTHING_TO_DO if self._tree.has_attributes(there, entry) else entries.NOTHING_MISSING
            if not self._checksum:
                return verdict, NO_DIGEST
            fd = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=folder.fd)
            try:
                return verdict, file_digest(fd)
            finally:
                os.close(fd)
        except OSError:
            return None

    def _begun(self, folder: Folder, name: bytes, entry: Entry) -> int:
        """The bytes of a file that an earlier copy has written; what it has of another version of it is removed."""
        stage = self._stages[-1]
        whole = name_of(name, entry)
        mine = [left for left in stage.left if left.startswith(whole[:-16])]
        stage.left = [left for left in stage.left if left not in mine]
        best = 0
        for left in mine:
            fd = open_leftover(folder, left) if left.startswith(whole) and not best else -1
            if fd < 0:
                self._clean(folder, [left])
                continue
            size = os.fstat(fd).st_size
            os.close(fd)
            if 0 < size < entry.size:
                best = size
            else:
                self._clean(folder, [left])
        return best
