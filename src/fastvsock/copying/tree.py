"""Writing a copy down: every entry below one root, whole or not at all, and never through a link.

A file is written under a temporary name in its folder, which is locked while it is in use, and renamed when it is
complete. What an interruption leaves of a large file can be continued: the temporary name says which file, of which
size and time, it is the beginning of.
"""

import errno
import fcntl
import os
import stat

from . import entries, small
from .digests import file_digest
from .entries import Entry, Fault
from .folders import DIRECTORY, Folder, Shelf
from .options import Options
from .target import Target

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

PREFIX, SUFFIX = b".fastvsock-", b".part"
KEY = 16  # hexadecimal digits
WORTH_KEEPING = 1 << 20  # bytes of a file that was interrupted
ZEROS = memoryview(bytes(1 << 16))
SPECIAL = {
    stat.S_IFCHR: entries.DEVICE,
    stat.S_IFBLK: entries.DEVICE,
    stat.S_IFIFO: entries.OVER_FIFO,
    stat.S_IFSOCK: entries.SOCKET,
}
WRITE_FLAGS = os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC


class Partial:
    """A file that is being written, in `folder` under the name `temporary` so far: `name` is its final one."""

    def __init__(self, folder: Folder, temporary: bytes, name: bytes, fd: int) -> None:
        self.folder, self.temporary, self.name, self.fd = folder, temporary, name, fd
        self.position = 0  # the bytes that are delivered, or left out as a hole
        self._has_hole = False

    def skip(self, length: int) -> None:
        """Leave a hole. Raises `Fault`."""
        self._has_hole = True
        try:
            os.lseek(self.fd, length, os.SEEK_CUR)
        except OSError:  # EINVAL and EOVERFLOW say it of an offset
            raise Fault(entries.WRITE, errno.EFBIG) from None

    def write(self, data: memoryview) -> None:
        """Write content. Raises `Fault`."""
        self.position += len(data)
        try:
            while data:
                data = data[os.write(self.fd, data) :]
        except OSError as error:
            raise Fault(entries.WRITE, error.errno or 0) from None

    def set_size(self, size: int) -> None:
        """Make a hole at the end part of the file. Raises `OSError`."""
        if self._has_hole:
            os.ftruncate(self.fd, size)

    def abandon(self, *, keep: bool) -> None:
        """It will not be complete: remove it, unless it is worth continuing and `keep` says so."""
        try:
            if not (keep and os.fstat(self.fd).st_size >= WORTH_KEEPING):
                os.unlink(self.temporary, dir_fd=self.folder.fd)
        except OSError:
            pass  # somebody else has removed it
        os.close(self.fd)


class Stream(Partial):
    """A device or a FIFO, which takes the content of a file as it comes and stays what it is."""

    def __init__(self, fd: int) -> None:
        self.fd, self.position = fd, 0

    def skip(self, length: int) -> None:
        """A hole is zeros here: a disk would keep what it has there. Raises `Fault`."""
        while length:
            zeros = ZEROS[:length]
            self.write(zeros)
            length -= len(zeros)

    def finish(self, *, fsync: bool) -> None:
        """It has all of it. Raises `OSError`."""
        try:
            if fsync:
                os.fsync(self.fd)
        except OSError as error:
            if error.errno != errno.EINVAL:  # there is no disk behind it
                raise
        os.close(self.fd)

    def abandon(self, *, keep: bool) -> None:
        """What it has taken cannot be taken back."""
        os.close(self.fd)


class Level:
    """A folder that is being written: None where it could not be made; `entry` is None where it stays as it is.

    Where `is_new`, all that is in it came with this copy.
    """

    __slots__ = ("entry", "folder", "is_new", "name")

    def __init__(self, name: bytes, folder: "Folder | None" = None) -> None:
        self.folder, self.name = folder, name
        self.entry: Entry | None = None
        self.is_new = False


class Tree:
    """A receiver's disk. Its methods raise `Fault` for what cannot be written, and the copy goes on."""

    def __init__(self, target: Target, options: Options, *, native: bool) -> None:
        self._options, self._target = options, target
        self._shelf = Shelf(native=native)
        self.root = Folder(self._shelf, b"", root=target.root)
        self._levels = [Level(b"", self.root)]
        self._uid = os.geteuid()
        self._owner = options.owner and self._uid == 0
        self._linked: dict[int, tuple[Folder, bytes]] = {}
        self._mine, self._smalls = PREFIX + os.urandom(KEY).hex().encode(), 0  # temporary names of small files
        self.top: bytes | None = None  # what the next entry at the top is called; None: what is in it goes to the root

    @property
    def depth(self) -> int:
        """How many folders the next entry is in, the root not counted."""
        return len(self._levels) - 1

    def path(self, name: bytes = b"") -> bytes:
        """Where the entry `name`, or the folder in hand, stands below its source."""
        names = [level.name for level in self._levels[2:]]
        return b"/".join([*names, name] if name and self.depth else names)

    def begin_source(self, number: int) -> None:
        """The next entry at the top is what this source is about."""
        self.top = self._target.names[number]

    def place(self, entry: Entry) -> tuple[Folder, bytes]:
        """The folder and the name for an entry. What the other end calls it does not matter at the top."""
        folder = self._levels[-1].folder
        if folder is None:
            raise Fault(entries.FOLDER, 0)
        if not self.depth:
            assert self.top is not None
            return folder, self.top
        if is_temporary(entry.name):
            raise Fault(entries.UNFINISHED, 0)
        return folder, entry.name

    def _place_entry(self, entry: Entry, over: int = 0) -> tuple[Folder, bytes]:
        """The folder and the name for what is no folder. It takes the place of no special file but of type `over`."""
        if not self.depth:
            if self.top is None:
                raise Fault(entries.CREATE, errno.ENOTDIR)
            if self._target.needs_folder:
                raise Fault(entries.TARGET, errno.ENOENT)
        folder, name = self.place(entry)
        if not self._levels[-1].is_new:
            refuse_special(folder, name, over)
        return folder, name

    def place_top_file(self) -> "tuple[Folder, bytes | None]":
        """The folder and the name for a regular file at the top: where a link leads to that is the target itself."""
        if self._target.is_link:
            try:
                fd, name = self._target.follow()
            except OSError as error:
                raise Fault(entries.CREATE, error.errno or 0) from None
            return Folder(self._shelf, b"", root=fd), name
        return self.root, self.top

    def _place_file(self, entry: Entry) -> tuple[Folder, bytes]:
        if self.depth or not self._target.is_link:
            return self._place_entry(entry)
        folder, name = self.place_top_file()
        assert name is not None
        refuse_special(folder, name)
        return folder, name

    @property
    def is_stream(self) -> bool:
        """Whether the target itself takes the content of the next file, being a device or a FIFO."""
        return self._target.is_stream and not self.depth

    def enter(self, entry: Entry) -> None:
        """Make a folder, if it is not there, and be in it. Raises `Fault`, and is in it nevertheless."""
        level = Level(entry.name)
        try:
            if not self.depth and self.top is None:
                level.folder = self.root
                return
            above, name = self.place(entry)
            try:
                os.mkdir(name, 0o777 if entry.flags & entries.BARE else 0o700, dir_fd=above.fd)
                level.is_new = True
                folder = above.child(name)
            except FileExistsError:
                folder = self.find_folder(above, name)
            if folder.fd >= 0:
                level.folder, level.entry = folder, None if entry.flags & entries.BARE else entry
        except OSError as error:
            raise Fault(entries.CREATE, error.errno or 0) from None
        finally:
            self._levels.append(level)

    def find_folder(self, above: Folder, name: bytes) -> Folder:
        """The folder that has this name, or that a link of this name leads to if that is asked for. Raises `Fault`.

        Such a link may lead down from where it is and no other way, so nobody gains anything by sending one.
        """
        try:
            words = os.readlink(name, dir_fd=above.fd).rstrip(b"/").split(b"/")
        except OSError:
            return above.child(name)
        if not self._options.keep_dirlinks:
            raise Fault(entries.DIRLINK, 0)
        if not all(map(entries.is_name, words)):
            raise Fault(entries.LINK_ELSEWHERE, 0)
        for word in words:
            above = above.child(word)
        return above

    def leave(self) -> None:
        """Be done with a folder. Its mode and time come last, for its entries need the one and change the other."""
        level = self._levels.pop()
        if level.folder is None:
            return
        try:
            if level.entry:
                self.set_attributes(level.folder.fd, level.entry)
            if self._options.fsync:
                os.fsync(level.folder.fd)
        except OSError as error:
            raise Fault(entries.SET, error.errno or 0) from None
        finally:
            level.folder.close()

    def set_attributes(self, fd: int, entry: Entry) -> None:
        """Give a file or folder its owner, attributes, mode and time: in this order, for a new owner ends setuid."""
        if self._owner:
            os.fchown(fd, entry.uid, entry.gid)
        for name, value in entry.xattrs if hasattr(os, "setxattr") else ():  # not in CPython 3.11 for musl
            try:
                os.setxattr(fd, name, value)
            except OSError as error:
                if error.errno not in (errno.EPERM, errno.EACCES, errno.EOPNOTSUPP):
                    raise
        os.fchmod(fd, entry.mode if self._owner else entry.mode & 0o777)
        os.utime(fd, ns=(entry.mtime, entry.mtime))

    def write_small(self, entry: Entry, content: memoryview, digest: bytes) -> None:
        """Write a file whose content came with its entry. Raises `Fault`."""
        if (
            digest
            or entry.xattrs
            or self._options.fsync
            or self._target.is_stream
            or not self._write_unlocked(entry, content)
        ):
            partial = self.create(entry)
            try:
                partial.write(content)
            except Fault:
                partial.abandon(keep=False)
                raise
            self.complete(partial, entry, digest)

    def _write_unlocked(self, entry: Entry, content: memoryview) -> bool:
        """Write a small file without a lock on it. False where another copy has cleaned it away meanwhile."""
        folder, name = self._place_file(entry)
        self._smalls += 1
        temporary = b"%s-%08x%s" % (self._mine, self._smalls, SUFFIX)
        try:
            at = folder.fd
            fd = small.create(at, temporary, entry, is_ours=not self._owner or entry.uid == self._uid)
        except OSError as error:
            raise Fault(entries.CREATE, error.errno or 0) from None
        try:
            small.fill(fd, entry, content, self._owner)
            os.rename(temporary, name, src_dir_fd=at, dst_dir_fd=at)
        except FileNotFoundError:
            return False
        except BaseException as error:
            remove(at, temporary)
            if isinstance(error, OSError):
                raise Fault(entries.WRITE, error.errno or 0) from None
            raise
        finally:
            os.close(fd)
        return True

    def create(self, entry: Entry) -> Partial:
        """Begin a file."""
        if self.is_stream:
            return self._open_stream()
        folder, name = self._place_file(entry)
        try:
            fd = folder.fd
            while True:
                temporary = new_name(name, entry)
                file = os.open(temporary, WRITE_FLAGS | os.O_CREAT | os.O_EXCL, 0o600, dir_fd=fd)
                if lock(file):
                    return Partial(folder, temporary, name, file)
                os.close(file)
        except OSError as error:
            raise Fault(entries.CREATE, error.errno or 0) from None

    def _open_stream(self) -> Stream:
        if self._options.checksum:
            raise Fault(entries.UNREADABLE, 0)
        try:
            return Stream(os.open(self._target.path, os.O_WRONLY | os.O_NOCTTY | os.O_CLOEXEC))
        except OSError as error:
            raise Fault(entries.WRITE, error.errno or 0) from None

    def go_on(self, entry: Entry, offset: int) -> Partial:
        """Go on with a file behind `offset`, which an earlier copy has come to."""
        folder, name = self._place_file(entry)
        try:
            for temporary in leftovers(folder):
                if temporary.startswith(name_of(name, entry)):
                    fd = open_leftover(folder, temporary)
                    if fd >= 0:
                        os.ftruncate(fd, offset)
                        os.lseek(fd, offset, os.SEEK_SET)
                        return Partial(folder, temporary, name, fd)
        except OSError as error:
            raise Fault(entries.WRITE, error.errno or 0) from None
        raise Fault(entries.WRITE, errno.ENOENT)

    def complete(self, partial: Partial, entry: Entry, digest: bytes) -> None:
        """A file is whole: see whether it is, and give it its name. Raises `Fault`, and the file is gone."""
        try:
            if isinstance(partial, Stream):
                partial.finish(fsync=self._options.fsync)
                return
            partial.set_size(entry.size)
            if digest and file_digest(partial.fd) != digest:
                raise Fault(entries.DIFFERS, 0)
            self.set_attributes(partial.fd, entry)
            if self._options.fsync:
                os.fsync(partial.fd)
            fd = partial.folder.fd
            os.rename(partial.temporary, partial.name, src_dir_fd=fd, dst_dir_fd=fd)
        except OSError as error:
            partial.abandon(keep=False)
            raise Fault(entries.WRITE, error.errno or 0) from None
        except Fault:
            partial.abandon(keep=False)
            raise
        os.close(partial.fd)

    def has_attributes(self, there: os.stat_result, entry: Entry) -> bool:
        """Whether a file has the mode and the owner that it would be given."""
        if not self._owner:
            return stat.S_IMODE(there.st_mode) == entry.mode & 0o777
        return (stat.S_IMODE(there.st_mode), there.st_uid, there.st_gid) == (entry.mode, entry.uid, entry.gid)

    def keep(self, entry: Entry) -> None:
        """A file that is there already: only its mode and owner may be others. Raises `Fault`."""
        if entry.flags & entries.AS_IT_IS:
            return
        folder, name = self._place_file(entry)
        try:
            there = os.stat(name, dir_fd=folder.fd, follow_symlinks=False)
            if not self.has_attributes(there, entry):
                fd = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=folder.fd)
                try:
                    self.set_attributes(fd, entry)
                finally:
                    os.close(fd)
        except OSError as error:
            raise Fault(entries.SET, error.errno or 0) from None

    def remember(self, number: int, entry: Entry) -> None:
        """Other names of this file may follow."""
        if len(self._linked) < entries.MAX_LINKABLE:
            self._linked[number] = self.place(entry)

    def link(self, entry: Entry, number: int) -> None:
        """Give a file, which came as entry `number`, another name."""
        folder, name = self._place_file(entry)
        if number not in self._linked:
            raise Fault(entries.NO_LINK, 0)
        above, first = self._linked[number]
        try:
            source = os.dup(above.fd)  # to look up the other folder may close it
            try:
                fd = folder.fd
                put_in_place(
                    fd,
                    name,
                    entry,
                    lambda new: os.link(first, new, src_dir_fd=source, dst_dir_fd=fd, follow_symlinks=False),
                )
            finally:
                os.close(source)
        except OSError as error:
            raise Fault(entries.CREATE, error.errno or 0) from None

    def symlink(self, entry: Entry) -> None:
        """Make a symbolic link, which nothing here will ever follow."""
        folder, name = self._place_entry(entry)
        try:
            fd = folder.fd
            put_in_place(fd, name, entry, lambda new: os.symlink(bytes(entry.rest), new, dir_fd=fd))
            if self._owner:
                os.chown(name, entry.uid, entry.gid, dir_fd=fd, follow_symlinks=False)
            os.utime(name, ns=(entry.mtime, entry.mtime), dir_fd=fd, follow_symlinks=False)
        except OSError as error:
            raise Fault(entries.CREATE, error.errno or 0) from None

    def fifo(self, entry: Entry) -> None:
        """Make a FIFO."""
        folder, name = self._place_entry(entry, over=stat.S_IFIFO)
        try:
            fd = folder.fd
            put_in_place(fd, name, entry, lambda new: os.mkfifo(new, 0o600, dir_fd=fd))
            pipe = os.open(name, os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=fd)
            try:
                self.set_attributes(pipe, entry)
            finally:
                os.close(pipe)
        except OSError as error:
            raise Fault(entries.CREATE, error.errno or 0) from None

    def finish(self) -> None:
        """All is there: let the disk have it, if that is asked for. Raises `OSError`."""
        if self._options.fsync:
            self._target.fsync()

    def close(self) -> None:
        """Close all folders."""
        self._shelf.close_all()


class Rehearsal(Tree):
    """A tree that stays as it is: for `--dry-run`."""

    def enter(self, entry: Entry) -> None:
        """Be in a folder, without making it."""
        self._levels.append(Level(entry.name))

    def symlink(self, entry: Entry) -> None:
        """Make nothing."""

    def fifo(self, entry: Entry) -> None:
        """Make nothing."""

    def link(self, entry: Entry, number: int) -> None:
        """Make nothing."""

    def keep(self, entry: Entry) -> None:
        """Change nothing."""

    def remember(self, number: int, entry: Entry) -> None:
        """Nothing will be linked to."""

    def finish(self) -> None:
        """Nothing has been written."""


def refuse_special(folder: Folder, name: bytes, over: int = 0) -> None:
    """Raises `Fault` where a device, a FIFO or a socket has this name, which is not of the type `over` (S_IFMT)."""
    try:
        kind = stat.S_IFMT(os.stat(name, dir_fd=folder.fd, follow_symlinks=False).st_mode)
    except OSError:
        return  # nothing is there, or to write will say why
    if kind in SPECIAL and kind != over:
        raise Fault(SPECIAL[kind], 0)


def put_in_place(fd: int, name: bytes, entry: Entry, make: "Callable[[bytes], None]") -> None:
    """`make` an entry in the folder `fd`; what has its name is replaced in one step. Raises `OSError`."""
    try:
        make(name)
    except FileExistsError:
        temporary = new_name(name, entry)
        make(temporary)
        try:
            os.rename(temporary, name, src_dir_fd=fd, dst_dir_fd=fd)
        finally:
            remove(fd, temporary)  # it is still there where both are names of one file: rename(2)


def remove(folder: int, name: bytes) -> None:
    """Remove a temporary name from the folder with this descriptor, if it is there still."""
    try:
        os.unlink(name, dir_fd=folder)
    except OSError:
        pass  # it has been renamed, or somebody else has removed it


# The names of files that are being written, and of what is left of them


def name_of(name: bytes, entry: Entry) -> bytes:
    """What a temporary name begins with: which file it is, and of which size and time."""
    version = entry.size.to_bytes(8, "big") + entry.mtime.to_bytes(8, "big", signed=True)
    return b"%s%s%s" % (PREFIX, _short(name), _short(version))


def _short(data: bytes) -> bytes:
    import hashlib  # as late as in digests.py

    return hashlib.blake2b(data, digest_size=KEY // 2).hexdigest().encode()


def new_name(name: bytes, entry: Entry) -> bytes:
    """A temporary name that nobody has."""
    return b"%s-%s%s" % (name_of(name, entry), os.urandom(4).hex().encode(), SUFFIX)


def is_temporary(name: bytes) -> bool:
    """Whether it looks like a temporary name."""
    return name.startswith(PREFIX) and name.endswith(SUFFIX)


def lock(fd: int) -> bool:
    """Take the lock of a temporary file. False where another copy is writing it."""
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def leftovers(folder: Folder) -> "list[bytes]":
    """The temporary names in a folder. Raises `OSError`."""
    fd = os.open(b".", DIRECTORY, dir_fd=folder.fd)
    try:
        with os.scandir(fd) as found:
            return [name for entry in found if is_temporary(name := os.fsencode(entry.name))]
    finally:
        os.close(fd)


def open_leftover(folder: Folder, name: bytes) -> int:
    """A temporary file that nobody is writing, locked; -1 where it is in use, gone, or something else."""
    try:
        fd = os.open(name, WRITE_FLAGS, dir_fd=folder.fd)
    except OSError:
        return -1
    status = os.fstat(fd)
    if stat.S_ISREG(status.st_mode) and status.st_nlink == 1 and status.st_uid == os.geteuid() and lock(fd):
        return fd
    os.close(fd)
    return -1
