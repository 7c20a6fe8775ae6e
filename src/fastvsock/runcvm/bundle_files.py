"""Reads and writes the files of a bundle, by paths relative to its root, and never a file outside of it.

A path is resolved here and not by the kernel: each name is opened relative to the folder before it, with O_NOFOLLOW,
and a symbolic link is read and followed only while it stays inside the root (openat2(2) has RESOLVE_BENEATH for that,
which Python's `os` does not offer). An absolute link leads out, unless it begins with a path where RunCVM mounts the
bundle: then it is followed inside this one. Each access walks the path again, so a link that appears between two
accesses is stopped by O_NOFOLLOW as well.

Every change is one rename(2) of a finished and synced file, so a reader, and a run after a kill, finds the old file or
the new one.
"""

import errno
import fcntl
import os
import stat
from collections.abc import Callable, Collection, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass
from types import TracebackType

from ..errors import BundleError, CircleError

HOPS = 40  # symbolic links in the resolution of one path, as in the kernel: path_resolution(7)
MOUNTS = ("/.runcvm/guest/", "/opt/runcvm/")  # in containers and guests, and on the node
SPARE = ".fastvsock-new"
FOLDER = os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
MAX_FILE = 1 << 26  # bytes; far more than any file that is edited or compared


@dataclass(frozen=True)
class Meta:
    """Mode and owner of a file, kept when it is replaced."""

    mode: int
    uid: int
    gid: int


@dataclass(frozen=True)
class File:
    """The content, mode and owner of a regular file."""

    data: bytes
    meta: Meta


Content = File | str | None  # what is at a path: a `str` is a symbolic link's target, None nothing


class Root:
    """An open bundle folder. Paths are relative to it; results and errors name them so. Use it as a context."""

    def __init__(self, path: str) -> None:
        self.path = os.path.abspath(path)
        try:
            self._fd = os.open(path, os.O_DIRECTORY | os.O_RDONLY | os.O_CLOEXEC)
        except OSError as error:
            raise BundleError(f"{path}: not a RunCVM bundle ({error.strerror}): pass its folder with --root") from None

    def __enter__(self) -> "Root":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        os.close(self._fd)

    @contextmanager
    def locked(self, path: str) -> Iterator[None]:
        """Hold the lock file at `path`, which is made and which only its owner can open. Raises `BundleError`.

        flock(2) on anything that others can open would let any user of the machine hold the lock.
        """
        self.make_folder(os.path.dirname(path))
        with self._explaining(path, "opened"), self._at(path) as (folder, name):
            fd = self._open_lock(folder, name)
            # The file may have been removed by its last holder after it was opened here: that one is not the lock.
            while fd is not None and not self._is_at(folder, name, fd):
                os.close(fd)
                fd = self._open_lock(folder, name)
        if fd is None:
            raise BundleError(f"{self.path}: another install or uninstall is running in this bundle")
        try:
            yield
        finally:
            os.close(fd)

    @staticmethod
    def _open_lock(folder: int, name: str) -> int | None:
        """A descriptor that holds the lock; None where another process has it."""
        flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
        fd = os.open(name, flags, 0o600, dir_fd=folder)
        try:
            mode = os.fstat(fd).st_mode
            if not stat.S_ISREG(mode):
                raise OSError(errno.EINVAL, "not a regular file")
            if stat.S_IMODE(mode) != 0o600:
                os.fchmod(fd, 0o600)
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(fd)
            return None
        except BaseException:
            os.close(fd)
            raise
        return fd

    @staticmethod
    def _is_at(folder: int, name: str, fd: int) -> bool:
        try:
            return os.path.samestat(os.fstat(fd), os.stat(name, dir_fd=folder, follow_symlinks=False))
        except FileNotFoundError:
            return False

    def real(self, path: str) -> str:
        """`path` without symbolic links, where they stay inside; its last name need not exist."""
        done: list[str] = []
        todo = path.split("/")[::-1]
        hops = 0
        while todo:
            name = todo.pop()
            if name in ("", "."):
                continue
            if name == "..":
                if not done:
                    raise BundleError(f"{self.path}: {path} leads out of the bundle; nothing is changed through it")
                done.pop()
                continue
            target = self._link("/".join([*done, name]))
            if target is None:
                done.append(name)
                continue
            hops += 1
            if hops > HOPS:
                raise CircleError(f"{self.path}: {path} is a circle of links: {'/'.join([*done, name])} -> {target}")
            mount = next((mount for mount in MOUNTS if target.startswith(mount)), "")
            if mount:
                done, target = [], target.removeprefix(mount)
            if target.startswith("/"):
                raise BundleError(
                    f"{self.path}: {path} leads out of the bundle, through the link "
                    f"{'/'.join([*done, name])} -> {target}; nothing is changed through it"
                )
            todo += target.split("/")[::-1]
        return "/".join(done)

    def place(self, path: str) -> str:
        """As `real`, but a link at the last name is not followed: the link itself is meant."""
        folder, _, name = path.rpartition("/")
        return f"{self.real(folder)}/{name}".lstrip("/")

    def full(self, path: str) -> str:
        """The absolute path of a file, to run or show it. Raises `BundleError` if it is outside of the bundle."""
        return f"{self.path}/{self.real(path)}"

    def kind(self, path: str) -> str:
        """What `path` is, a link not being followed: ``file``, ``folder``, ``link``, ``other``, or empty."""
        try:
            with self._at(path) as (folder, name):
                mode = os.stat(name, dir_fd=folder, follow_symlinks=False).st_mode
        except (FileNotFoundError, NotADirectoryError):
            return ""
        kinds = {stat.S_IFREG: "file", stat.S_IFDIR: "folder", stat.S_IFLNK: "link"}
        return kinds.get(stat.S_IFMT(mode), "other")

    def readlink(self, path: str) -> str:
        """Where the symbolic link at `path` leads."""
        with self._at(path) as (folder, name):
            return os.readlink(name, dir_fd=folder)

    def read(self, path: str) -> File | None:
        """The regular file at `path`; None if nothing is there. Raises `BundleError` for anything else."""
        real = self.real(path)
        try:
            with self._parent(real) as (folder, name):
                # O_NONBLOCK: a FIFO in a file's place must not block the process.
                fd = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=folder)
        except (FileNotFoundError, NotADirectoryError):
            return None
        except OSError as error:
            raise BundleError(f"{self.path}/{path}: cannot be read: {error.strerror}") from None
        status = os.fstat(fd)
        if not stat.S_ISREG(status.st_mode) or status.st_size > MAX_FILE:
            os.close(fd)
            raise BundleError(f"{self.path}/{path}: expected a regular file")
        with open(fd, "rb") as file:
            return File(file.read(), Meta(stat.S_IMODE(status.st_mode), status.st_uid, status.st_gid))

    def content(self, path: str) -> Content:
        """What is at `path`. Raises `BundleError` for anything that is not a file or a link."""
        kind = self.kind(path)
        if kind == "link":
            return self.readlink(path)
        return self.read(path) if kind else None

    def names(self, path: str) -> list[str]:
        """The names in the folder `path`, sorted; none if it does not exist."""
        try:
            with self._folder(self.real(path)) as folder:
                return sorted(os.listdir(folder))
        except (FileNotFoundError, NotADirectoryError):
            return []

    def write(self, path: str, data: bytes, meta: Meta, last_look: Callable[[], None] | None = None) -> None:
        """Put a file at `path`, in one step. `last_look` is called right before it, and may raise to prevent it."""
        with self._explaining(path, "written"), self._at(path) as (folder, name):
            spare = _spare(name)
            self._unlink(folder, spare)
            try:
                self._make(folder, spare, data, meta, path)
                if last_look:
                    last_look()
                _rename(folder, spare, name)
            except BaseException:
                with suppress(OSError):
                    self._unlink(folder, spare)
                raise

    def _make(self, folder: int, name: str, data: bytes, meta: Meta, path: str) -> None:
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        fd = os.open(name, flags, 0o600, dir_fd=folder)
        with open(fd, "wb") as file:
            file.write(data)
            file.flush()
            status = os.fstat(fd)
            if (status.st_uid, status.st_gid) != (meta.uid, meta.gid):
                try:
                    os.fchown(fd, meta.uid, meta.gid)
                except OSError:
                    raise BundleError(self.no_owner(path, meta)) from None
            os.fchmod(fd, meta.mode)
            os.fsync(fd)

    def no_owner(self, path: str, meta: Meta) -> str:
        """The sentence for a file whose owner cannot be set."""
        return f"{self.path}/{path}: its owner {meta.uid}:{meta.gid} cannot be kept without CAP_CHOWN"

    def link(self, path: str, target: str, last_look: Callable[[], None] | None = None) -> None:
        """Put a symbolic link at `path`, in one step; `last_look` as for `write`."""
        with self._explaining(path, "made"), self._at(path) as (folder, name):
            self._unlink(folder, _spare(name))
            if last_look:
                last_look()
            os.symlink(target, _spare(name), dir_fd=folder)
            _rename(folder, _spare(name), name)

    def tidy(self, path: str) -> None:
        """Remove what a killed `write` may have left beside `path`."""
        folder, slash, name = path.rpartition("/")
        self.remove(f"{folder}{slash}{_spare(name)}")

    def remove(self, path: str, last_look: Callable[[], None] | None = None) -> None:
        """Remove the file or link at `path`, if there is one; `last_look` as for `write`."""
        nothing = suppress(FileNotFoundError, NotADirectoryError)
        with self._explaining(path, "removed"), nothing, self._at(path) as (folder, name):
            if last_look:
                last_look()
            self._unlink(folder, name)
            os.fsync(folder)

    def make_folder(self, path: str) -> None:
        """Make the folder `path`, and the missing ones above it."""
        parts = path.split("/")
        for count in range(1, len(parts) + 1):
            step = "/".join(parts[:count])
            with self._explaining(step, "made"), self._at(step) as (folder, name):
                try:
                    os.mkdir(name, 0o755, dir_fd=folder)
                except FileExistsError:
                    continue
                os.chmod(name, 0o755, dir_fd=folder)  # whatever the umask
                os.fsync(folder)

    def files(self, path: str) -> Iterator[str]:
        """Everything at and below `path` that is not a folder. No link is followed."""
        kind = self.kind(path)
        if kind == "folder":
            for name in self.names(path):
                yield from self.files(f"{path}/{name}")
        elif kind:
            yield path

    def scripts(self) -> Iterator[str]:
        """The regular files below scripts/, but for what a killed `write` may have left."""
        for path in self.files("scripts"):
            if self.kind(path) == "file" and not path.endswith(SPARE):
                yield path

    def remove_tree(self, path: str, but: Collection[str] = ()) -> None:
        """Remove the folder `path` with its content, except for the paths in `but`; or the file or link there."""
        if path in but:
            return
        if self.kind(path) != "folder":
            return self.remove(path)
        for name in self.names(path):
            self.remove_tree(f"{path}/{name}", but)
        with self._explaining(path, "removed"), self._at(path) as (folder, name):
            try:
                os.rmdir(name, dir_fd=folder)
            except OSError as error:
                if error.errno != errno.ENOTEMPTY:
                    raise

    def _link(self, path: str) -> str | None:
        """The target of the link at `path`, whose folders are not links; None for anything else."""
        try:
            with self._parent(path) as (folder, name):
                return os.readlink(name, dir_fd=folder)
        except OSError as error:
            if error.errno in (errno.EINVAL, errno.ENOENT, errno.ENOTDIR):
                return None
            raise BundleError(f"{self.path}/{path}: cannot be examined: {error.strerror}") from None

    @contextmanager
    def _folder(self, path: str) -> Iterator[int]:
        """The folder at `path`, opened name by name; a link in it fails with ELOOP or ENOTDIR."""
        fd = os.open(".", FOLDER, dir_fd=self._fd)
        try:
            for name in path.split("/") if path else []:
                if name in ("", ".", ".."):
                    raise BundleError(f"{self.path}: {path} is not a path inside the bundle")
                inner = os.open(name, FOLDER, dir_fd=fd)
                os.close(fd)
                fd = inner
            yield fd
        finally:
            os.close(fd)

    def _at(self, path: str) -> AbstractContextManager[tuple[int, str]]:
        """The opened folder of `path`, and its last name; a link there is not followed."""
        return self._parent(self.place(path))

    @contextmanager
    def _parent(self, path: str) -> Iterator[tuple[int, str]]:
        folder, _, name = path.rpartition("/")
        with self._folder(folder) as fd:
            yield fd, name

    @contextmanager
    def _explaining(self, path: str, what: str) -> Iterator[None]:
        """Raise the errors of the system as `BundleError`, with the path."""
        try:
            yield
        except OSError as error:
            raise BundleError(f"{self.path}/{path}: cannot be {what}: {error.strerror}") from None

    @staticmethod
    def _unlink(folder: int, name: str) -> None:
        try:
            os.unlink(name, dir_fd=folder)
        except FileNotFoundError:
            pass


def may_own(meta: Meta) -> bool:
    """Whether this process may set that owner, tried on a file in memory."""
    if (meta.uid, meta.gid) == (os.geteuid(), os.getegid()):
        return True
    fd = os.memfd_create("owner")
    try:
        os.fchown(fd, meta.uid, meta.gid)
    except OSError:
        return False
    finally:
        os.close(fd)
    return True


def _spare(name: str) -> str:
    """The name under which a file is made before it is renamed. Always the same, so the next run replaces leftovers."""
    return f".{name}{SPARE}"


def _rename(folder: int, old: str, new: str) -> None:
    os.rename(old, new, src_dir_fd=folder, dst_dir_fd=folder)
    os.fsync(folder)
