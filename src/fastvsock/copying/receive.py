"""The receiving end of a copy: takes entries as they come, checks their order, and answers for each of them."""

from .. import errors
from . import entries
from .entries import Entry, Fault
from .look import Look
from .options import Options
from .wire import Wire, unexpected

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

    from .report import Report
    from .tree import Partial, Tree

ANSWERS = 256  # entries, at most, between two answers
VERDICTS = 1 << 11  # bytes of verdicts, at most, in one answer
LINK_TARGET = 4095  # bytes of a symbolic link's target: PATH_MAX with its NUL


class Receiver:
    """Writes what comes through `wire` to `tree`. `labels` are what reports call the sources."""

    def __init__(self, wire: Wire, tree: "Tree", options: Options, report: "Report", labels: "Sequence[bytes]") -> None:
        self._wire, self._tree, self._options = wire, tree, options
        self._report, self._labels = report, labels
        self._above = b""  # what reports call the folder in hand, with its slash
        self._look = Look(tree, options) if options.resume else None
        self._source = -1
        self._has_top = True  # whether the source in hand has had its entry
        self._number = self._settled = self._answered = 0
        self._content = 0
        self._verdicts = bytearray()
        self._partial: Partial | None = None
        self.failures = 0
        wire.before_wait = self._answer

    def run(self) -> None:
        """Receive all of it. Raises `BrokenWire` and `ProtocolError`; a large file that is under way is kept."""
        try:
            while True:
                kind, payload = self._wire.next()
                if kind == entries.FINISH and isinstance(payload, bytes):
                    break
                self._take(kind, payload)
            self._finish(*entries.parse_pair(payload))
        finally:
            if self._partial:
                self._partial.abandon(keep=True)
            self._tree.close()

    def _finish(self, count: int, size: int) -> None:
        if (count, size) != (self._number, self._content) or self._tree.depth or self._source + 1 < len(self._labels):
            raise errors.ProtocolError(
                f"the end after {count} entries and {size} bytes, where {self._number} and {self._content} came"
            )
        try:
            self._tree.finish()
        except OSError as error:
            self.failures += 1
            self._report.failed(self._label(b""), entries.WRITE, error.errno or 0)
        self._answer()
        self._wire.flush()

    def _take(self, kind: int, payload: "bytes | int") -> None:
        if isinstance(payload, int):
            raise unexpected(kind, payload)
        if kind in entries.NUMBERED:
            self._take_entry(kind, Entry.parse(payload))
        elif kind == entries.SOURCE:
            self._begin_source(entries.parse_pair(payload)[0])
        elif kind == entries.NOTE:
            self._note(payload)
        elif kind == entries.TOTAL and self._options.measure:
            self._report.expect(entries.parse_pair(payload)[0])
        elif self._look and entries.OFFER_ENTER <= kind <= entries.OFFER_FILE:
            self._take_offer(self._look, kind, Entry.parse(payload))
        else:
            raise unexpected(kind, payload)

    def _begin_source(self, number: int) -> None:
        if number != self._source + 1 or number >= len(self._labels) or self._tree.depth:
            raise errors.ProtocolError(f"source {number}, which is not the next one")
        self._source, self._has_top = number, False
        self._tree.begin_source(number)
        self._above = b""

    def _label(self, below: bytes) -> bytes:
        label = self._labels[max(self._source, 0)]
        return label + (b"" if label.endswith(b"/") else b"/") + below if below else label

    def _note(self, payload: bytes) -> None:
        kind, number, name = entries.parse_fault(payload)
        if kind == 0xFF or (name and not entries.is_name(name)):
            raise errors.ProtocolError("a note that is about nothing")
        self.failures += 1
        self._report.failed(self._label(self._tree.path(name)), kind, number)

    def _take_entry(self, kind: int, entry: Entry) -> None:
        depth = self._tree.depth
        if not depth:
            if self._has_top or kind == entries.LEAVE:
                raise errors.ProtocolError("an entry that no source is about")
            self._has_top = True
        if kind == entries.ENTER and depth >= entries.MAX_DEPTH:
            raise errors.ProtocolError(f"more than {entries.MAX_DEPTH} folders in one another")
        self._number += 1
        path = self._above + entry.name if self._above and kind != entries.LEAVE else self._label(self._tree.path())
        try:
            size = self._write(kind, entry)
        except Fault as fault:
            self.failures += 1
            self._wire.put(entries.fault(self._number, *fault.args))
            self._report.failed(path, *fault.args)
        else:
            if kind == entries.KEPT:
                self._report.skipped(path, entry.size)
            elif kind != entries.LEAVE:
                self._report.copied(path, size)
        if kind in (entries.ENTER, entries.LEAVE):
            self._above = self._label(self._tree.path()).rstrip(b"/") + b"/" if self._tree.depth else b""
        self._settled = self._number
        if self._number - self._answered >= ANSWERS:
            self._answer()

    def _write(self, kind: int, entry: Entry) -> int:
        """Write one entry, and return the bytes of its content. Raises `Fault`."""
        if kind == entries.FILE:
            return self._receive_file(entry)
        if kind == entries.ENTER:
            self._tree.enter(entry)
        elif kind == entries.LEAVE:
            self._tree.leave()
        elif kind == entries.SYMLINK:
            if b"\0" in bytes(entry.rest) or not 0 < len(entry.rest) <= LINK_TARGET:
                raise errors.ProtocolError("a symbolic link to what none can lead to")
            self._tree.symlink(entry)
        elif kind == entries.LINK:
            self._tree.link(entry, int.from_bytes(entry.rest, "big"))
        elif kind == entries.FIFO:
            self._tree.fifo(entry)
        elif not self._look:
            raise unexpected(kind, len(entry.rest))
        else:
            self._tree.keep(entry)
            self._remember(entry)
        return 0

    def _remember(self, entry: Entry) -> None:
        if entry.flags & entries.LINKABLE:
            self._tree.remember(self._number, entry)

    def _receive_file(self, entry: Entry) -> int:
        if entry.flags & entries.EMPTY:
            if not self._options.dry_run:
                raise errors.ProtocolError("a file without its content")
            return entry.size
        if entry.flags & entries.INLINE:
            self._receive_small(entry)
            size = entry.size
        else:
            size = self._receive_large(entry)
        self._remember(entry)
        return size

    def _receive_small(self, entry: Entry) -> None:
        at = entries.DIGEST_SIZE if entry.flags & entries.DIGEST else 0
        if len(entry.rest) - at != entry.size:
            raise errors.ProtocolError(f"a file of {entry.size} bytes with {len(entry.rest) - at} bytes of content")
        self._content += entry.size
        self._report.progress(self._content)
        self._tree.write_small(entry, memoryview(entry.rest)[at:], bytes(entry.rest[:at]))

    def _receive_large(self, entry: Entry) -> int:
        """Raises `Fault` once all of the content is taken: what follows it can be written again."""
        offset = 0
        if entry.flags & entries.RESUMED:
            offset = int.from_bytes(entry.rest, "big")
            if not self._look or len(entry.rest) != 8 or not 0 < offset < entry.size:
                raise errors.ProtocolError("the rest of a file that was not begun")
        failure: Fault | None = None
        try:
            self._partial = self._tree.go_on(entry, offset) if offset else self._tree.create(entry)
        except Fault as fault:
            failure = fault
        failure, digest = self._receive_content(entry, offset, failure)
        partial, self._partial = self._partial, None
        if failure:
            if partial:
                partial.abandon(keep=False)
            raise failure
        assert partial
        self._tree.complete(partial, entry, digest)
        return entry.size - offset

    def _receive_content(self, entry: Entry, offset: int, failure: "Fault | None") -> "tuple[Fault | None, bytes]":
        """Take DATA and HOLE up to CLOSE. What is wrong, if anything is, and the digest."""
        while True:
            kind, payload = self._wire.next()
            if isinstance(payload, int):
                offset += payload
                length = payload
            elif kind == entries.HOLE:
                length = entries.parse_pair(payload)[0]
                offset += length
            elif kind == entries.CLOSE:
                break
            else:
                raise unexpected(kind, payload)
            if offset > entry.size:
                raise errors.ProtocolError(f"more than the {entry.size} bytes of a file")
            failure = self._receive_stretch(kind, length, failure)
        reason, number, digest = entries.parse_fault(payload)
        if reason != 0xFF:
            return failure or Fault(reason, number), b""
        if offset != entry.size or len(digest) not in (0, entries.DIGEST_SIZE):
            raise errors.ProtocolError(f"the end of a file of {entry.size} bytes after {offset}")
        return failure, digest

    def _receive_stretch(self, kind: int, length: int, failure: "Fault | None") -> "Fault | None":
        if kind == entries.DATA:
            self._content += length
            if failure or not self._partial:
                self._wire.discard(length)
            elif number := self._wire.deliver(length, self._partial.fd):
                return Fault(entries.WRITE, number)
            else:
                self._partial.position += length
            self._report.progress(self._content)
        elif not failure and self._partial:
            try:
                self._partial.skip(length)
            except Fault as fault:
                return fault
        return failure

    def _take_offer(self, look: Look, kind: int, entry: Entry) -> None:
        if kind == entries.OFFER_ENTER:
            if look.depth >= entries.MAX_DEPTH:
                raise errors.ProtocolError(f"more than {entries.MAX_DEPTH} folders in one another")
            look.enter(entry)
        elif kind == entries.OFFER_LEAVE:
            if not look.depth:
                raise errors.ProtocolError("an offer to leave no folder")
            look.leave()
        else:
            self._verdicts += look.file(entry)
            if len(self._verdicts) >= VERDICTS:
                self._answer()
                self._wire.flush()  # the sender walks on meanwhile

    def _answer(self) -> None:
        """Send the verdicts, and say how far all entries are dealt with."""
        if self._verdicts:
            self._wire.put(entries.frame(entries.VERDICT, bytes(self._verdicts)))
            self._verdicts.clear()
        if self._settled > self._answered:
            self._answered = self._settled
            self._wire.put(entries.pair(entries.ACK, self._settled, self._content))
