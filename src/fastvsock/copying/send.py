"""The sending end of a copy: walks the sources, and sends what it finds as fast as the other end takes it."""

import errno
import os
import stat
from collections import deque

from .. import errors
from . import entries
from .digests import file_digest, sha256
from .entries import Entry, Fault
from .folders import DIRECTORY, Folder, Shelf
from .options import Options
from .walk import Filter, Walk, data_stretches, split_source
from .wire import Wire, unexpected

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from .report import Report
    from .walk import Found

LOOKAHEAD = 2048  # entries of the walk that are offered before the first of them is sent
TOGETHER = 256  # of them that are sent together, for the other end to look at while this one walks on
OFFERS = {entries.ENTER: entries.OFFER_ENTER, entries.LEAVE: entries.OFFER_LEAVE, entries.FILE: entries.OFFER_FILE}
FILE_FLAGS = os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC  # a FIFO in a file's place blocks nobody
UNSIZED = 1 << 26  # bytes, at most, of a file that does not say how many it has
PIECE = 1 << 16  # bytes of it that are read at a time
SOON = 0.05  # seconds: a source that is measured as fast is measured before it is sent


class Answers:
    """What the receiver has answered, and the names of the entries that it has yet to answer for."""

    def __init__(self, wire: Wire, report: "Report") -> None:
        self._wire, self._report = wire, report
        self._waiting: deque[tuple[int, Folder, bytes, int]] = deque()
        self._faults: dict[int, Fault] = {}
        self.verdicts: deque[tuple[int, bytes]] = deque()
        self._verdict_size = 8
        self.sent = self.answered = 0
        self.failures = 0
        self.end: tuple[int, bytes] | None = None  # the message behind the last answer, which is not the copy's

    def expect(self, kind: int, folder: Folder, name: bytes, size: int) -> None:
        """An entry has been sent."""
        self.sent += 1
        self._waiting.append((kind, folder, name, size))
        while self.sent - self.answered >= entries.AHEAD:
            self._wire.wait_for_answers()

    def with_digests(self) -> None:
        """Verdicts have a digest behind their offset."""
        self._verdict_size += entries.DIGEST_SIZE

    def take(self, kind: int, payload: bytes) -> None:
        """Account for an answer. Raises `ProtocolError`."""
        if kind == entries.ACK:
            number, _ = entries.parse_pair(payload)
            if not self.answered <= number <= self.sent:
                raise errors.ProtocolError(f"an answer to entry {number}, which is not under way")
            while self.answered < number:
                self.answered += 1
                self._settle(*self._waiting.popleft())
        elif kind == entries.FAULT:
            number, fault, reason = entries.parse_answer(payload)
            if not self.answered < number <= self.sent or len(self._faults) > entries.AHEAD:
                raise errors.ProtocolError(f"an answer to entry {number}, which is not under way")
            self._faults[number] = Fault(fault, reason)
        elif kind == entries.VERDICT and not len(payload) % self._verdict_size:
            for at in range(0, len(payload), self._verdict_size):
                verdict = payload[at : at + self._verdict_size]
                self.verdicts.append((int.from_bytes(verdict[:8], "big"), verdict[8:]))
            if len(self.verdicts) > LOOKAHEAD:
                raise errors.ProtocolError("more verdicts than there were offers")
        elif kind < entries.ENTER and self.answered == self.sent and self.end is None:
            self.end = kind, payload
        else:
            raise unexpected(kind, payload)

    def wait_for_end(self) -> tuple[int, bytes]:
        """The message that ends the channel. Raises `BrokenWire` and `ProtocolError`."""
        while self.end is None:
            self._wire.wait_for_answers()
        return self.end

    def _settle(self, kind: int, folder: Folder, name: bytes, size: int) -> None:
        fault = self._faults.pop(self.answered, None)
        if fault:
            self.failures += 1
            self._report.failed(folder.path(name), *fault.args)
        elif kind == entries.KEPT:
            self._report.skipped(folder.path(name), size)
        elif kind != entries.LEAVE:
            self._report.copied(folder.path(name), size)


class Sender:
    """Sends the `sources`, paths of this machine, through `wire`; `labels` are what reports call them."""

    def __init__(self, wire: Wire, options: Options, report: "Report", *, native: bool) -> None:
        self.wire, self.report, self._options = wire, report, options
        self._shelf = Shelf(native=native, follow=options.follow)
        self._walk = Walk(self._shelf, Filter(options.exclude), look=options.resume or options.dry_run)
        self.answers = Answers(wire, report)
        if options.checksum:
            self.answers.with_digests()
        wire.on_frame = self.answers.take
        self._linked: dict[tuple[int, int], int] = {}
        self.content = 0
        self._taken: set[bytes] | None = None  # where files are in the target, if two sources could have the same
        self._offset = 0  # in a file that the receiver has the beginning of
        self._total = 0  # bytes of content, once they are known and until they are said

    def run(self, sources: "Sequence[bytes]", labels: "Sequence[bytes]") -> None:
        """Send all of it, and wait for the last answer. Raises `BrokenWire` and `ProtocolError`."""
        if self._options.measure:
            from .progress import measure  # few ask for it

            measure(sources, self._know_total).join(SOON)
        names = [split_source(source)[1] for source in sources]
        if len(names) > 1 and (b"" in names or len(set(names)) < len(names)):
            self._taken = set()
        for number, (source, label) in enumerate(zip(sources, labels, strict=True)):
            self.wire.put(entries.pair(entries.SOURCE, number))
            self._send_source(source, label)
        self.finish()

    def _know_total(self, content: int) -> None:
        self._total = content

    def finish(self) -> None:
        """Say that this was all, and wait for the last answer."""
        self.wire.put(entries.pair(entries.FINISH, self.answers.sent, self.content))
        while self.answers.answered < self.answers.sent:
            self.wire.wait_for_answers()
        self.wire.flush()

    def _send_source(self, source: bytes, label: bytes) -> None:
        above, name = split_source(source)
        try:
            fd = os.open(above, DIRECTORY)
        except OSError as error:
            self._report_and_note(Folder(self._shelf, label), b"", Fault(entries.READ, error.errno or 0))
            return
        try:
            if name:
                shown = label.rstrip(b"/")[: -len(name)] if label.rstrip(b"/").endswith(name) else label + b"/"
                root = Folder(self._shelf, shown.rstrip(b"/") or shown[:1], root=fd)
                found = self._walk.entry(root, name, follow=source.endswith(b"/"))
            else:
                found = self._walk.tree(Folder(self._shelf, label, root=fd), os.fstat(fd))
            self._send_all(found)
        finally:
            self._shelf.close_all()
            os.close(fd)

    def _send_all(self, found: "Iterator[Found]") -> None:
        if not self._options.resume:
            for one in found:
                self._send(*one)
            return
        queue: deque[tuple[Entry | None, Found]] = deque()
        for number, one in enumerate(found):
            queue.append((self._offer(*one), one))
            if number % TOGETHER == 0:
                self.wire.flush()
            while queue and (len(queue) >= LOOKAHEAD or queue[0][1][0] != entries.FILE or self.answers.verdicts):
                self._send_decided(*queue.popleft())
        while queue:
            self._send_decided(*queue.popleft())

    def _offer(self, kind: int, folder: Folder, name: bytes, status: "os.stat_result | Fault | None") -> "Entry | None":
        """What was offered, if it is something to offer."""
        if kind not in OFFERS:
            return None
        entry = _entry(folder, name, status if isinstance(status, os.stat_result) else None)
        self.wire.put(entry.encode(OFFERS[kind]))
        return entry

    def _send_decided(self, offered: "Entry | None", found: "Found") -> None:
        kind, folder, name, status = found
        if offered is None or kind != entries.FILE:
            self._send(kind, folder, name, status)
            return
        while not self.answers.verdicts:
            self.wire.wait_for_answers()
        self._offset, digest = self.answers.verdicts.popleft()
        assert isinstance(status, os.stat_result)
        flags = entries.AS_IT_IS if self._offset == entries.NOTHING_TO_DO else 0
        if self._offset < entries.NOTHING_TO_DO or not self._is_same(folder, name, digest):
            self._offset = 0 if self._offset >= status.st_size else self._offset
            self._send(kind, folder, name, status)
        else:
            offered.flags = flags
            self._keep(folder, offered, status)
        self._offset = 0

    def _take_place(self, folder: Folder, name: bytes) -> None:
        """Raises `Fault` where a file of another source has its place in the target, as cp(1) has it."""
        if self._taken is not None:
            _, place = folder.below_root(name)
            if place in self._taken:
                raise Fault(entries.TWICE, 0)
            self._taken.add(place)

    def _is_same(self, folder: Folder, name: bytes, digest: bytes) -> bool:
        """Whether a file has the digest that the receiver's has, if digests are asked for."""
        if not self._options.checksum:
            return True
        try:
            fd = self._open(folder, name)
        except (OSError, Fault):
            return False  # sending it will say why
        try:
            return file_digest(fd) == digest
        except OSError:
            return False
        finally:
            os.close(fd)

    def _keep(self, folder: Folder, entry: Entry, status: os.stat_result) -> None:
        try:
            self._take_place(folder, entry.name)
        except Fault as fault:
            self._report_and_note(folder, entry.name, fault)
            return
        if status.st_nlink > 1:
            entry.flags |= entries.LINKABLE
        self.wire.put(entry.encode(entries.KEPT))
        self.answers.expect(entries.KEPT, folder, entry.name, status.st_size)
        if status.st_nlink > 1:
            self._remember(status)

    def _send(self, kind: int, folder: Folder, name: bytes, status: "os.stat_result | Fault | None") -> None:
        """Send one entry, or report why it cannot be read."""
        if self._total:
            self.wire.put(entries.pair(entries.TOTAL, self._total))
            self._total = 0
        try:
            if isinstance(status, Fault):
                raise status
            if kind not in (entries.ENTER, entries.LEAVE):
                self._take_place(folder, name)
            if kind == entries.FILE:
                self._send_file(folder, name, status)
                return
            entry = _entry(folder, name, status)
            if kind == entries.SYMLINK:
                entry.rest = os.readlink(name, dir_fd=folder.fd)
            elif kind == entries.ENTER and self._options.xattrs:
                entry.xattrs = _attributes(folder.fd)
            frame = entry.encode(kind)
        except (Fault, OSError) as error:
            fault = error if isinstance(error, Fault) else Fault(entries.READ, error.errno or 0)
            self._report_and_note(folder, name, fault)
            if kind != entries.ENTER:
                return
            frame = _entry(folder, name, status if isinstance(status, os.stat_result) else None).encode(kind)
        self.wire.put(frame)
        self.answers.expect(kind, folder, name, 0)

    def _report_and_note(self, folder: Folder, name: bytes, fault: Fault) -> None:
        kind, number = fault.args
        self.answers.failures += 1
        self.report.failed(folder.path(name), kind, number)
        self.wire.put(entries.note(kind, number, name))

    def _open(self, folder: Folder, name: bytes) -> int:
        return os.open(name, FILE_FLAGS | (0 if self._options.follow else os.O_NOFOLLOW), dir_fd=folder.fd)

    def _send_file(self, folder: Folder, name: bytes, status: "os.stat_result | None") -> None:
        """Raises `Fault` and `OSError` where it cannot be read."""
        if self._options.dry_run:
            assert status is not None
            entry = _entry(folder, name, status)
            entry.flags |= entries.EMPTY
            self.wire.put(entry.encode(entries.FILE))
            self.answers.expect(entries.FILE, folder, name, status.st_size)
            return
        fd = self._open(folder, name)
        try:
            status = os.fstat(fd)
            if not stat.S_ISREG(status.st_mode):
                raise Fault(entries.CHANGED, 0)
            if status.st_nlink > 1 and self._send_link(folder, name, status):
                return
            entry = _entry(folder, name, status)
            if status.st_nlink > 1:
                entry.flags |= entries.LINKABLE
            if self._options.xattrs:
                entry.xattrs = _attributes(fd)
            if status.st_size <= entries.SMALL and not self._offset:
                self._send_small(fd, folder, entry, status)
            else:
                self._send_large(fd, folder, entry, status)
            if status.st_nlink > 1:
                self._remember(status)
        finally:
            os.close(fd)

    def _remember(self, status: os.stat_result) -> None:
        if len(self._linked) < entries.MAX_LINKABLE:
            self._linked[status.st_dev, status.st_ino] = self.answers.sent

    def _send_link(self, folder: Folder, name: bytes, status: os.stat_result) -> bool:
        """Send another name of a file that was sent, if it is one."""
        first = self._linked.get((status.st_dev, status.st_ino))
        if first is None:
            return False
        self.wire.put(Entry(name, rest=first.to_bytes(8, "big")).encode(entries.LINK))
        self.answers.expect(entries.LINK, folder, name, 0)
        return True

    def _send_small(self, fd: int, folder: Folder, entry: Entry, before: os.stat_result) -> None:
        data = os.read(fd, entry.size + 1)
        if _differs(os.fstat(fd), before) or (len(data) != entry.size and before.st_blocks):
            raise Fault(entries.CHANGED, 0)
        if len(data) != entry.size:  # procfs and sysfs do not say how much there is
            data = _read_on(fd, data)
            entry.size = len(data)
            if entry.size > entries.SMALL:
                self._send_held(folder, entry, data)
                return
        entry.flags |= entries.INLINE
        if self._options.checksum:
            entry.flags |= entries.DIGEST
            data = sha256(data).digest() + data
        entry.rest = data
        self.wire.put(entry.encode(entries.FILE))
        self.content += entry.size
        self.report.progress(self.content)
        self.answers.expect(entries.FILE, folder, entry.name, entry.size)

    def _send_held(self, folder: Folder, entry: Entry, data: bytes) -> None:
        """Send a large file whose content is in memory."""
        self.wire.put(entry.encode(entries.FILE))
        self.answers.expect(entries.FILE, folder, entry.name, entry.size)
        for at in range(0, entry.size, entries.MAX_DATA):
            self.wire.put(entries.frame(entries.DATA, data[at : at + entries.MAX_DATA]))
        self.wire.put(entries.close(digest=sha256(data).digest() if self._options.checksum else b""))
        self.content += entry.size
        self.report.progress(self.content)

    def _send_large(self, fd: int, folder: Folder, entry: Entry, before: os.stat_result) -> None:
        offset = self._offset
        if offset:
            entry.flags |= entries.RESUMED
            entry.rest = offset.to_bytes(8, "big")
        self.wire.put(entry.encode(entries.FILE))
        self.answers.expect(entries.FILE, folder, entry.name, entry.size - offset)
        try:
            self._send_stretches(fd, offset, entry.size, before)
            digest = file_digest(fd) if self._options.checksum else b""
            if _differs(os.fstat(fd), before):
                raise Fault(entries.CHANGED, 0)
            self.wire.put(entries.close(digest=digest))
        except (Fault, OSError) as error:
            fault = error if isinstance(error, Fault) else Fault(entries.READ, error.errno or 0)
            self.wire.put(entries.close(*fault.args))

    def _send_stretches(self, fd: int, offset: int, size: int, before: os.stat_result) -> None:
        is_sparse = before.st_blocks * 512 < size
        stretches: Iterable[tuple[int, int]] = data_stretches(fd, offset, size) if is_sparse else ((offset, size),)
        for start, end in stretches:
            if start > offset:
                self.wire.put(entries.pair(entries.HOLE, start - offset))
            moved, number = self.wire.send_content(fd, start, end - start)
            self.content += moved
            if number:
                raise Fault(entries.CHANGED, 0) if number < 0 else Fault(entries.READ, number)
            self.report.progress(self.content)
            offset = end
        if offset < size:
            self.wire.put(entries.pair(entries.HOLE, size - offset))


def _entry(folder: Folder, name: bytes, status: "os.stat_result | None") -> Entry:
    shown = name or (folder.name if folder.parent else b"contents")
    return Entry(shown) if status is None else Entry.of(shown, status)


def _differs(after: os.stat_result, before: os.stat_result) -> bool:
    return (after.st_size, after.st_mtime_ns) != (before.st_size, before.st_mtime_ns)


def _read_on(fd: int, data: bytes) -> bytes:
    """`data`, and what the descriptor has behind it, up to its end. Raises `Fault` where it does not end soon."""
    held = bytearray(data)
    while data:
        data = os.read(fd, PIECE)
        held += data
        if len(held) > UNSIZED:
            raise Fault(entries.READ, errno.EFBIG)
    return bytes(held)


def _attributes(fd: int) -> "tuple[tuple[bytes, bytes], ...]":
    """The extended attributes. Raises `Fault` where they are more than an entry can have."""
    if not hasattr(os, "listxattr"):
        return ()  # CPython 3.11 for musl
    try:
        found = tuple((os.fsencode(name), os.getxattr(fd, name)) for name in os.listxattr(fd))
    except OSError as error:
        if error.errno in (errno.EOPNOTSUPP, errno.ENODATA):
            return ()
        raise
    if sum(len(name) + len(value) + 8 for name, value in found) > entries.MAX_XATTRS:
        raise Fault(entries.READ, errno.E2BIG)
    return found
