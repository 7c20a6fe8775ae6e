"""Tar streams in place of a tree of this host: one that is read becomes entries, and entries become one.

A stream is written in the pax format, which has names of any bytes, any size and times in ns. What a stream that is
read calls its members is checked here as the guest would: no name leads out of the target, whatever comes before it.
"""

import errno
import os
import tarfile
from decimal import ROUND_FLOOR, Decimal

from .. import errors
from . import entries
from .client import Copy
from .entries import Entry, Fault
from .folders import Folder, Shelf
from .options import Options
from .send import Sender
from .tree import Partial, Tree
from .walk import split_source
from .wire import Wire

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

BLOCK = 512  # bytes
ZEROS = bytes(1 << 16)
PIECE = 1 << 18  # bytes


def put_tar(copy: Copy, fd: int, target: bytes) -> None:
    """Copy the members of the tar stream on `fd`, compressed or not, into the folder `target` of the guest.

    Raises `StreamError` where it is not such a stream, or ends early: what came before is there.
    """
    copy.send([target, b""], lambda sender: TarSender(sender).run(Stream(fd, sender.wire)))


class Stream:
    """The tar stream on `fd`. While nothing comes, a guest that has gone is noticed."""

    def __init__(self, fd: int, wire: Wire) -> None:
        self._fd, self._wire = fd, wire

    def read(self, size: int) -> bytes:
        """Up to `size` bytes, and none at the end. Raises `OSError`, and what `Wire` does."""
        self._wire.wait_for_input(self._fd)
        return os.read(self._fd, size)


class TarSender:
    """Sends members as entries, in and out of folders as their names say."""

    def __init__(self, sender: Sender) -> None:
        self._sender, self._wire, self._answers = sender, sender.wire, sender.answers
        self._shelf = Shelf(native=False)
        self._folder = Folder(self._shelf, b"")
        self._inside: list[bytes] = []
        self._numbers: dict[tuple[bytes, ...], int] = {}

    def run(self, file: Stream) -> None:
        """Send all of them. Raises `StreamError`."""
        self._wire.put(entries.pair(entries.SOURCE, 0))
        self._put(entries.ENTER, Entry(b"contents", flags=entries.BARE))
        failure: Exception | None = None
        try:
            with tarfile.open(fileobj=file, mode="r|*", encoding="utf-8") as stream:  # type: ignore[call-overload]
                for member in stream:
                    self._send(stream, member)
                    stream.members = []  # it would keep them all
        except (tarfile.TarError, OSError, EOFError) as error:
            failure = error
        self._go_to([])
        self._put(entries.LEAVE, Entry(b"contents"))
        self._sender.finish()
        if failure:
            self._answers.wait_for_end()
            number = failure.errno if isinstance(failure, OSError) else None
            remedy = ": decompress it first" if isinstance(failure, tarfile.CompressionError) else ""
            raise errors.StreamError(f"cannot read the tar stream: {failure}{remedy}", number or 0)

    def _put(self, kind: int, entry: Entry, name: bytes = b"", size: int = 0) -> None:
        self._wire.put(entry.encode(kind))
        self._answers.expect(kind, self._folder, name, size)

    def _send(self, stream: tarfile.TarFile, member: tarfile.TarInfo) -> None:
        words = _words(member.name)
        try:
            if words is None:
                raise Fault(entries.NAME, 0)
            if member.isdir():
                self._enter(words, member)
                return
            if not words:
                raise Fault(entries.NAME, 0)
            self._go_to(words[:-1])
            self._send_entry(stream, member, words)
        except Fault as fault:
            self._answers.failures += 1
            self._sender.report.failed(os.fsencode(member.name), *fault.args)
            self._wire.put(entries.note(*fault.args))

    def _send_entry(self, stream: tarfile.TarFile, member: tarfile.TarInfo, words: list[bytes]) -> None:
        entry = _entry(words[-1], member)
        if member.isreg():
            self._send_file(stream, member, entry)
            if len(self._numbers) < entries.MAX_LINKABLE:
                self._numbers[tuple(words)] = self._answers.sent
        elif member.issym():
            entry.rest = os.fsencode(member.linkname)
            if not 0 < len(entry.rest) < 4096:
                raise Fault(entries.CREATE, errno.ENAMETOOLONG)
            self._put(entries.SYMLINK, entry, entry.name)
        elif member.islnk():
            number = self._numbers.get(tuple(_words(member.linkname) or ()))
            if number is None:
                raise Fault(entries.NO_LINK, 0)
            entry.rest = number.to_bytes(8, "big")
            self._put(entries.LINK, entry, entry.name)
        elif member.isfifo():
            self._put(entries.FIFO, entry, entry.name)
        else:
            raise Fault(entries.LEFT_OUT, 0)

    def _send_file(self, stream: tarfile.TarFile, member: tarfile.TarInfo, entry: Entry) -> None:
        if entry.size > entries.MAX_SIZE:  # what follows cannot be found: tarfile would read on and on
            raise tarfile.ReadError(f"{errors.printable(member.name)} has {entry.size} bytes")
        content = stream.extractfile(member)
        assert content
        entry.flags |= entries.LINKABLE
        if entry.size <= entries.SMALL:
            entry.flags |= entries.INLINE
            entry.rest = content.read(entry.size)
            if len(entry.rest) < entry.size:
                raise EOFError("unexpected end of data")
            self._put(entries.FILE, entry, entry.name, entry.size)
            self._sender.content += entry.size
            return
        self._put(entries.FILE, entry, entry.name, entry.size)
        left = entry.size
        try:
            while left:
                data = content.read(min(PIECE, left))
                if not data:
                    raise EOFError("unexpected end of data")
                self._wire.put(entries.frame(entries.DATA, data))
                self._sender.content += len(data)
                left -= len(data)
        except BaseException:
            self._wire.put(entries.close(entries.READ, errno.EIO))
            raise
        self._wire.put(entries.close())

    def _enter(self, words: list[bytes], member: tarfile.TarInfo) -> None:
        """Be in a folder that the stream has the attributes of. Those of the target itself stay as they are."""
        if words:
            self._go_to(words[:-1])
            self._down(_entry(words[-1], member))

    def _go_to(self, words: list[bytes]) -> None:
        """Be in this folder."""
        common = 0
        for one, other in zip(words, self._inside, strict=False):
            if one != other:
                break
            common += 1
        while len(self._inside) > common:
            name = self._inside.pop()
            self._put(entries.LEAVE, Entry(name))
            assert self._folder.parent
            self._folder = self._folder.parent
        for word in words[common:]:
            self._down(Entry(word, flags=entries.BARE))

    def _down(self, entry: Entry) -> None:
        self._inside.append(entry.name)
        self._folder = self._folder.child(entry.name)
        self._put(entries.ENTER, entry)


def _words(name: str) -> "list[bytes] | None":
    """The folders of a member's name, and its own; None for one that is not below the target."""
    path = os.fsencode(name)
    words = [word for word in path.split(b"/") if word not in (b"", b".")]
    return None if path.startswith(b"/") or not all(map(entries.is_name, words)) else words


def _entry(name: bytes, member: tarfile.TarInfo) -> Entry:
    try:
        uid, gid = member.uid & 0xFFFFFFFF, member.gid & 0xFFFFFFFF
        time = Decimal(member.pax_headers.get("mtime", member.mtime))  # tarfile's own is a float, which is too short
        mtime = entries.packable(int((time * 10**9).to_integral_value(ROUND_FLOOR)))
        size = member.size if member.isreg() else 0
        return Entry(name, member.mode & 0o7777, uid, gid, mtime, size)
    except (ArithmeticError, ValueError):
        raise Fault(entries.READ, errno.EINVAL) from None


def get_tar(copy: Copy, sources: "Sequence[bytes]", fd: int) -> None:
    """Write paths of the guest to the descriptor `fd`, as a tar stream. Raises `StreamError` where it takes no more."""
    copy.receive(TarTree(fd, [split_source(source)[1] or b"." for source in sources]), sources)


class TarPartial(Partial):
    """A file in the stream, of which the size is said already."""

    def __init__(self, fd: int, size: int) -> None:
        self.fd, self._size, self.position = fd, size, 0

    def skip(self, length: int) -> None:
        """A hole is zeros here."""
        self.position += length
        write_zeros(self.fd, length)

    def write(self, data: memoryview) -> None:
        """Write content. Raises `StreamError`."""
        self.position += len(data)
        write_all(self.fd, data)

    def abandon(self, *, keep: bool) -> None:
        """Fill what is missing with zeros, for the stream has to go on behind it."""
        write_zeros(self.fd, self._size + -self._size % BLOCK - self.position)


class TarTree(Tree):
    """A tar stream, written as the entries come. `names` are what the sources are called in it."""

    def __init__(self, fd: int, names: "list[bytes]") -> None:
        self._fd, self._names = fd, names
        self._options = Options()
        self._inside: list[bytes] = []
        self._first: dict[int, bytes] = {}
        self.top: bytes | None = None

    @property
    def depth(self) -> int:
        """How many folders the next entry is in."""
        return len(self._inside)

    def path(self, name: bytes = b"") -> bytes:
        """Where the entry stands below its source."""
        return b"/".join([*self._inside[1:], name] if name and self.depth else self._inside[1:])

    def begin_source(self, number: int) -> None:
        """The next entry at the top is called as this source is."""
        self.top = self._names[number]

    def _path(self, entry: Entry) -> bytes:
        assert self.top is not None
        return b"/".join([*self._inside, entry.name]) if self.depth else self.top

    def _put(self, entry: Entry, kind: bytes, link: bytes = b"") -> None:
        info = tarfile.TarInfo(os.fsdecode(self._path(entry)))
        info.type, info.mode, info.uid, info.gid = kind, entry.mode, entry.uid, entry.gid
        info.size = entry.size if kind == tarfile.REGTYPE else 0
        info.linkname = os.fsdecode(link)
        seconds, rest = divmod(entry.mtime, 10**9)
        info.mtime = seconds
        if rest:
            info.pax_headers = {"mtime": f"{Decimal(entry.mtime).scaleb(-9):f}"}
        write_all(self._fd, memoryview(info.tobuf(tarfile.PAX_FORMAT, "utf-8", "surrogateescape")))

    def enter(self, entry: Entry) -> None:
        """A folder."""
        self._put(entry, tarfile.DIRTYPE)
        self._inside.append(entry.name if self.depth else self._path(entry))

    def leave(self) -> None:
        """Its entries are all there."""
        self._inside.pop()

    def symlink(self, entry: Entry) -> None:
        """A symbolic link."""
        self._put(entry, tarfile.SYMTYPE, bytes(entry.rest))

    def link(self, entry: Entry, number: int) -> None:
        """Another name of a file. Raises `Fault`."""
        if number not in self._first:
            raise Fault(entries.NO_LINK, 0)
        self._put(entry, tarfile.LNKTYPE, self._first[number])

    def fifo(self, entry: Entry) -> None:
        """A FIFO."""
        self._put(entry, tarfile.FIFOTYPE)

    def write_small(self, entry: Entry, content: memoryview, digest: bytes) -> None:
        """A file whose content came with its entry."""
        self._put(entry, tarfile.REGTYPE)
        write_all(self._fd, content)
        write_zeros(self._fd, -entry.size % BLOCK)

    def create(self, entry: Entry) -> Partial:
        """Begin a file."""
        self._put(entry, tarfile.REGTYPE)
        return TarPartial(self._fd, entry.size)

    def complete(self, partial: Partial, entry: Entry, digest: bytes) -> None:
        """A file is whole."""
        write_zeros(self._fd, -entry.size % BLOCK)

    def remember(self, number: int, entry: Entry) -> None:
        """Other names of this file may follow."""
        if len(self._first) < entries.MAX_LINKABLE:
            self._first[number] = self._path(entry)

    def finish(self) -> None:
        """The end of a stream is two blocks of zeros."""
        write_zeros(self._fd, 2 * BLOCK)

    def close(self) -> None:
        """Nothing is open."""


def write_all(fd: int, data: memoryview) -> None:
    """Raises `StreamError`."""
    try:
        while data:
            data = data[os.write(fd, data) :]
    except OSError as error:
        raise errors.StreamError(f"cannot write the tar stream: {error.strerror}", error.errno or 0) from None


def write_zeros(fd: int, count: int) -> None:
    """Raises `StreamError`."""
    while count:
        size = min(count, len(ZEROS))
        write_all(fd, memoryview(ZEROS)[:size])
        count -= size
