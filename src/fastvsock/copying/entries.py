"""The messages of a copy: bytes in, entries out. Knows no descriptor.

One end walks a tree and sends what it finds, in order; the other writes it down and answers. A frame has the header of
engines/frames.py. The sender says SOURCE with a number for each path that was asked for, then its entries: ENTER and
LEAVE around what is in a folder, FILE, SYMLINK, LINK (another name of a file that came before) and FIFO. A small file's
content is in its FILE frame; a larger one's follows in DATA and HOLE frames up to CLOSE, which says whether the source
stayed what it was. NOTE reports an entry that could not be read, and FINISH how much there was. TOTAL, which a receiver
with a terminal asks for, says between two entries how much content there will be.

The receiver numbers the entries as they come, and answers with ACK (all up to this number are dealt with) and FAULT
(this one was not copied, for this reason). Nothing waits for an answer, except that the sender is at most `AHEAD`
entries in front of the last ACK, so that it can keep their names.

Where files that are there already are to be left alone, the sender first offers a stretch of the walk (OFFER_ENTER,
OFFER_FILE, OFFER_LEAVE), and a VERDICT for each file says what is missing: all of it, nothing, or what is behind an
offset. KEPT then stands for a file that is there, and `AS_IT_IS` for one whose mode and owner need no second look.

What the other end sends is checked before it is believed: here, and in receive.py.
"""

import errno
import os
import stat
import struct

from .. import errors

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

ENTER, LEAVE, FILE, SYMLINK, LINK, FIFO, KEPT, DATA, HOLE, CLOSE, NOTE, SOURCE, FINISH = range(32, 45)
OFFER_ENTER, OFFER_LEAVE, OFFER_FILE, ACK, FAULT, VERDICT, TOTAL = range(45, 52)
NUMBERED = frozenset((ENTER, LEAVE, FILE, SYMLINK, LINK, FIFO, KEPT))

INLINE, LINKABLE, WITH_XATTRS, BARE, EMPTY, RESUMED, DIGEST, AS_IT_IS = 1, 2, 4, 8, 16, 32, 64, 128

SMALL = 1 << 16  # bytes of a file whose content is in its entry
MAX_MESSAGE = 1 << 18  # bytes: a small file, its attributes and its name
MAX_DATA = 1 << 20  # bytes of a DATA frame
MAX_XATTRS = 1 << 17  # bytes of all attributes of an entry: Linux has at most 64 KiB of values in most file systems
MAX_SIZE = (1 << 63) - 1  # off_t
FIRST_TIME, LAST_TIME = -(1 << 63), (1 << 63) - 1  # ns since 1970: from 1677 to 2262
MAX_NAME = 255  # bytes of a name: NAME_MAX, which some file systems do not keep to
MAX_LINKABLE = 1 << 20  # files with several names in one copy, each of which is remembered
MAX_DEPTH = 1 << 12  # folders in one another
AHEAD = 4096  # entries that may be under way without an answer
DIGEST_SIZE = 32  # SHA-256
NOTHING_MISSING = (1 << 64) - 1
NOTHING_TO_DO = (1 << 64) - 2  # neither content nor attributes

# What went wrong with an entry, as it stands in front of the system's reason.
FAULTS = (
    "cannot read",
    "cannot write",
    "cannot create",
    "cannot set the attributes of",
    "changed while it was read",
    "left out",
    "the folder could not be written",
    "the copy has another digest",
    "the file that it is another name of was not copied",
    "cannot be named so",
    "not copied over the file of this name from another SOURCE: rename one, or copy it to another TARGET",
    "its name, .fastvsock-*.part, is that of an unfinished copy: finish it with --resume, remove it, or rename it",
    "cannot copy to",
    "not copied over the device of this name: remove it, or copy to another TARGET",
    "not copied over the FIFO of this name: remove it, or copy to another TARGET",
    "not copied over the socket of this name: remove it, or copy to another TARGET",
    "not written, for a device or a FIFO cannot be read again: leave --checksum out",
    "not copied into the link of this name: --keep-dirlinks copies into the folder that it leads to",
    "not copied into the link of this name, for it does not lead down from its folder: make the real folder the TARGET",
)
READ, WRITE, CREATE, SET, CHANGED, LEFT_OUT, FOLDER, DIFFERS, NO_LINK, NAME, TWICE, UNFINISHED, TARGET = range(13)
DEVICE, OVER_FIFO, SOCKET, UNREADABLE, DIRLINK, LINK_ELSEWHERE = range(TARGET + 1, len(FAULTS))

_ENTRY = struct.Struct(">BIIIqQB")
_CLOSE = struct.Struct(">BI")
_FAULT = struct.Struct(">QBI")
_PAIR = struct.Struct(">QQ")
_HEADER = struct.Struct(">II")  # the type is in the first byte, the next three are 0
_LENGTH = struct.Struct(">I")


class Fault(Exception):  # no error of the package: it is about one entry, and the copy goes on
    """One entry is not there: the arguments are its kind, of `FAULTS`, and an errno or 0."""


def describe(kind: int, number: int, target: str = "the target") -> str:
    """A fault in words, without the name that it is about. `target` is the folder that a `TARGET` fault is about."""
    words = f"{FAULTS[kind]} {target}" if kind == TARGET else FAULTS[kind]
    return f"{words}: {os.strerror(number)}" if number else words


def frame(kind: int, payload: bytes = b"") -> bytes:
    """A whole frame."""
    return _HEADER.pack(kind << 24, len(payload)) + payload


def header(kind: int, length: int) -> bytes:
    """The header in front of `length` bytes."""
    return _HEADER.pack(kind << 24, length)


def parse_header(data: "bytes | memoryview", at: int = 0) -> tuple[int, int]:
    """The type and the length of the frame at an offset of `data`. Raises `ProtocolError`."""
    first, length = _HEADER.unpack_from(data, at)
    kind = first >> 24
    if first & 0xFFFFFF:
        raise errors.ProtocolError("a header that is not one")
    if length > (MAX_DATA if kind == DATA else MAX_MESSAGE):
        raise errors.ProtocolError(f"a frame of type {kind} with {length} bytes, which is too long")
    return kind, length


def is_name(name: bytes) -> bool:
    """Whether `name` is one that an entry of a folder can have."""
    return 0 < len(name) <= MAX_NAME and name not in (b".", b"..") and b"/" not in name and b"\0" not in name


def packable(time: int) -> int:
    """A time in ns, or the nearest that an entry can have: file systems go on behind 2262, 64 bits of ns do not."""
    return min(max(time, FIRST_TIME), LAST_TIME)


class Entry:
    """What is known of an entry: `mtime` in ns since 1970, `size` in bytes, `rest` what its kind has besides."""

    __slots__ = ("flags", "gid", "mode", "mtime", "name", "rest", "size", "uid", "xattrs")

    def __init__(
        self,
        name: bytes,
        mode: int = 0,
        uid: int = 0,
        gid: int = 0,
        mtime: int = 0,
        size: int = 0,
        *,
        flags: int = 0,
        xattrs: "tuple[tuple[bytes, bytes], ...]" = (),
        rest: "bytes | memoryview" = b"",
    ) -> None:
        self.name, self.mode, self.uid, self.gid = name, mode, uid, gid
        self.mtime, self.size, self.flags, self.xattrs, self.rest = mtime, size, flags, xattrs, rest

    @classmethod
    def of(cls, name: bytes, status: os.stat_result) -> "Entry":
        """The entry of a file with this status."""
        mode = stat.S_IMODE(status.st_mode)
        return cls(name, mode, status.st_uid, status.st_gid, packable(status.st_mtime_ns), status.st_size)

    def encode(self, kind: int) -> bytes:
        """The frame. Raises `Fault` where a number, or the length of the name, has no room in it."""
        attributes = b""
        if self.xattrs:
            self.flags |= WITH_XATTRS
            packed = b"".join(_packed(word) for pair in self.xattrs for word in pair)
            attributes = _packed(packed)
        name = self.name
        try:
            head = _ENTRY.pack(self.flags, self.mode, self.uid, self.gid, self.mtime, self.size, len(name))
        except struct.error:
            raise Fault(READ, errno.EOVERFLOW) from None
        length = len(head) + len(name) + len(attributes) + len(self.rest)
        return b"".join((header(kind, length), head, name, attributes, self.rest))  # which copies the content once

    @classmethod
    def parse(cls, payload: bytes) -> "Entry":
        """The entry in a frame. Raises `ProtocolError`."""
        try:
            flags, mode, uid, gid, mtime, size, length = _ENTRY.unpack_from(payload)
        except struct.error:
            raise errors.ProtocolError("an entry that is too short") from None
        at = _ENTRY.size + length
        name = payload[_ENTRY.size : at]
        if len(name) != length or not is_name(name):
            raise errors.ProtocolError(f"an entry called {errors.printable(os.fsdecode(name))!r}")
        if size > MAX_SIZE or mode > 0o7777:
            raise errors.ProtocolError(f"an entry of {size} bytes and mode {mode:o}")
        found = cls(name, mode, uid, gid, mtime, size, flags=flags)
        if flags & WITH_XATTRS:
            packed, at = _unpacked(payload, at)
            found.xattrs = tuple(_pairs(packed))
        found.rest = memoryview(payload)[at:]
        return found


def _packed(word: bytes) -> bytes:
    return _LENGTH.pack(len(word)) + word


def _unpacked(data: bytes, at: int) -> tuple[bytes, int]:
    end = at + 4 + int.from_bytes(data[at : at + 4], "big")
    if len(data) < at + 4 or len(data) < end:
        raise errors.ProtocolError("an attribute that is longer than its frame")
    return data[at + 4 : end], end


def _pairs(data: bytes) -> "Iterator[tuple[bytes, bytes]]":
    at = 0
    while at < len(data):
        name, at = _unpacked(data, at)
        value, at = _unpacked(data, at)
        if not name or b"\0" in name or len(name) > 255:
            raise errors.ProtocolError("an attribute with a name that none can have")
        yield name, value


def note(kind: int, number: int, name: bytes = b"") -> bytes:
    """The entry `name` of the folder that the walk is in, or the folder itself, could not be read."""
    return frame(NOTE, _CLOSE.pack(kind, number) + name[:MAX_NAME])


def close(kind: int = 0xFF, number: int = 0, digest: bytes = b"") -> bytes:
    """The end of a file's content: whole, or not for this reason."""
    return frame(CLOSE, _CLOSE.pack(kind, number) + digest)


def parse_fault(payload: bytes) -> tuple[int, int, bytes]:
    """The kind, the errno and the rest of NOTE and CLOSE. Raises `ProtocolError`."""
    if len(payload) < _CLOSE.size or (payload[0] >= len(FAULTS) and payload[0] != 0xFF):
        raise errors.ProtocolError("a fault of an unknown kind")
    kind, number = _CLOSE.unpack_from(payload)
    return kind, _known(number), payload[_CLOSE.size :]


def fault(number: int, kind: int, reason: int) -> bytes:
    """The entry with this number is not there, for this reason."""
    return frame(FAULT, _FAULT.pack(number, kind, reason))


def parse_answer(payload: bytes) -> tuple[int, int, int]:
    """The number, the kind and the errno of FAULT. Raises `ProtocolError`."""
    if len(payload) != _FAULT.size or payload[8] >= len(FAULTS):
        raise errors.ProtocolError("a fault of an unknown kind")
    number, kind, reason = _FAULT.unpack(payload)
    return number, kind, _known(reason)


def pair(kind: int, first: int, second: int = 0) -> bytes:
    """A frame of two numbers: entries and bytes in ACK and FINISH, bytes in HOLE and TOTAL, a number in SOURCE."""
    return frame(kind, _PAIR.pack(first, second))


def parse_pair(payload: bytes) -> tuple[int, int]:
    """The two numbers. Raises `ProtocolError`."""
    if len(payload) != _PAIR.size:
        raise errors.ProtocolError("a pair of numbers of another length")
    first, second = _PAIR.unpack(payload)
    return first, second


def _known(number: int) -> int:
    """An errno that came from the other end: strerror(3) has words for these."""
    return number if number < 4096 else 0
