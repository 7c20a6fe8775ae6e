"""What a frame is, and the books that both ends of a channel keep about their streams. Knows no descriptor.

A channel is one connection. All that crosses it is frames: a header of 8 bytes (type, stream, two bytes that are 0,
length; big-endian) and `length` bytes behind it. Types below `MESSAGES` belong to a stream, and are dealt with here:

- DATA: bytes of the stream, never more than its receiver has given credit for;
- END: the stream is over, and this many bytes it had. The receiver compares: a difference is an error;
- CREDIT: the receiver has room for so many bytes more;
- STOP: nobody reads the stream any more. Its sender answers with END; what comes until then is dropped.

Every other type is a message, whole in one frame, and its meaning belongs to the user of `Frames`: see
channels/protocol.py. Streams begin with a credit of `WINDOW` that nobody has to give. A receiver gives back what it
delivers when that is half a window. Where nothing waits to be read then, the window becomes twice as large, up to
`WINDOW_MAX`: a stream that flows needs few words about it, and one that nobody reads holds no more than its last
window.

Whatever the other end sends is checked before it is believed: see `Complaint`.
"""

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

    Event = tuple[int, int, bytes | memoryview | int]

HEADER = 8
DATA, END, CREDIT, STOP = range(4)
MESSAGES = 16  # the first type that is a message
STREAMS = 4  # stream numbers are below
WINDOW, WINDOW_MAX = 1 << 16, 1 << 20  # bytes: a pipe by default, and the largest that any user may have (pipe(7))
MAX_MESSAGE = 1 << 15  # bytes; a longer one is a lie, or of another protocol

# What may be wrong with a frame. `_frames.pyx` has the numbers once more.
PADDING, STREAM, LENGTH, OVERRUN, AFTER_END, COUNT, EXCESS, TOO_LONG = range(1, 9)
SENTENCES = {
    PADDING: "a header that is not one (type {type}, stream {stream})",
    STREAM: "a frame of type {type} for stream {stream}, which this channel does not have",
    LENGTH: "a frame of type {type} with a length of {number} bytes, which it cannot have",
    OVERRUN: "{number} bytes more of stream {stream} than it had credit for",
    AFTER_END: "a frame of type {type} for stream {stream}, which had ended",
    COUNT: "the end of stream {stream} after {number} bytes, which is not what came",
    EXCESS: "credit for {number} bytes of stream {stream}, which is more than a window",
    TOO_LONG: "a message of type {type} with {number} bytes, which is too long",
}


class Complaint(Exception):
    """The other end broke the rules. The arguments are the code, the frame's type and stream, and a number."""

    def __str__(self) -> str:
        code, kind, stream, number = self.args
        return SENTENCES[code].format(type=kind, stream=stream, number=number)


def frame(kind: int, stream: int = 0, payload: bytes = b"") -> bytes:
    """A whole frame."""
    return header(kind, stream, len(payload)) + payload


def header(kind: int, stream: int, length: int) -> bytes:
    """The 8 bytes in front of `length` bytes of payload."""
    return bytes((kind, stream, 0, 0)) + length.to_bytes(4, "big")


def end_frame(stream: int, count: int) -> bytes:
    """The end of a stream that had `count` bytes."""
    return frame(END, stream, count.to_bytes(8, "big"))


def credit_frame(stream: int, count: int) -> bytes:
    """Room for `count` bytes more of a stream."""
    return frame(CREDIT, stream, count.to_bytes(4, "big"))


class Incoming:
    """The receiver's books of one stream. Counts are in bytes."""

    __slots__ = ("count", "ended", "held", "room", "window")

    def __init__(self) -> None:
        self.count = 0  # what came
        self.held = 0  # of that, what has yet to be delivered
        self.room = self.window = WINDOW  # what its sender may still send, and what may be under way at once
        self.ended = False

    def take(self, length: int, stream: int) -> None:
        """Account for a DATA frame. Raises `Complaint`."""
        if length > self.room:
            raise Complaint(OVERRUN, DATA, stream, length - self.room)
        self.room -= length
        self.held += length
        self.count += length

    def deliver(self, count: int) -> int:
        """Account for `count` bytes that are delivered, or dropped; the credit to give for it, often 0."""
        self.held -= count
        if self.ended:
            return 0
        grant = self.window - self.room - self.held
        if grant < self.window // 2:
            return 0
        if not self.held and self.window < WINDOW_MAX:
            grant += self.window
            self.window *= 2
        self.room += grant
        return grant


class Outgoing:
    """The sender's books of one stream. Counts are in bytes."""

    __slots__ = ("count", "credit", "ended")

    def __init__(self) -> None:
        self.count = 0
        self.credit = WINDOW
        self.ended = False

    def send(self, length: int) -> None:
        """Account for a DATA frame of `length` bytes, at most `credit`."""
        assert 0 < length <= self.credit
        assert not self.ended
        self.credit -= length
        self.count += length


class Frames:
    """One end of a channel: bytes in, events out. `incoming` and `outgoing` are the numbers of its streams.

    An event is a tuple of the frame's type, its stream and a value: for DATA the next bytes, which may be a piece of
    the frame; for END the count; for CREDIT what the stream may send now; for STOP nothing; for a message its bytes.
    """

    def __init__(self, incoming: "tuple[int, ...]" = (), outgoing: "tuple[int, ...]" = ()) -> None:
        self.incoming = {stream: Incoming() for stream in incoming}
        self.outgoing = {stream: Outgoing() for stream in outgoing}
        self._kind = self._stream = self._left = -1  # of the frame whose payload is being read
        self._part = bytearray()  # of a header, or of a payload that is needed whole

    @property
    def is_between(self) -> bool:
        """Whether what came ended with a whole frame."""
        return self._left < 0 and not self._part

    def receive(self, data: "memoryview") -> "Iterator[Event]":
        """The events of `data`, which is the connection's next piece. Raises `Complaint`."""
        at = 0
        while at < len(data) or self._left == 0:
            if self._left < 0:
                at += self._gather(data[at:], HEADER)
                if len(self._part) == HEADER:
                    self._begin(bytes(self._part))
                    self._part.clear()
            elif self._kind == DATA:
                piece = data[at : at + self._left]
                at += len(piece)
                self._left -= len(piece)
                if not self._left:
                    self._left = -1
                yield DATA, self._stream, piece
            else:
                at += self._gather(data[at:], self._left)
                if len(self._part) == self._left:
                    payload = bytes(self._part)
                    self._part.clear()
                    self._left = -1
                    yield self._finish(payload)

    def _gather(self, data: "memoryview", size: int) -> int:
        piece = data[: size - len(self._part)]
        self._part += piece
        return len(piece)

    def _begin(self, head: bytes) -> None:
        self._kind, self._stream, length = head[0], head[1], int.from_bytes(head[4:], "big")
        about = self._kind, self._stream, length
        if head[2:4] != b"\0\0" or STOP < self._kind < MESSAGES:
            raise Complaint(PADDING, *about)
        if self._kind >= MESSAGES:
            if self._stream:
                raise Complaint(STREAM, *about)
            if length > MAX_MESSAGE:
                raise Complaint(TOO_LONG, *about)
        elif self._kind in (DATA, END):
            if self._stream not in self.incoming:
                raise Complaint(STREAM, *about)
            stream = self.incoming[self._stream]
            if stream.ended:
                raise Complaint(AFTER_END, *about)
            if (length == 0) if self._kind == DATA else (length != 8):
                raise Complaint(LENGTH, *about)
            if self._kind == DATA:
                stream.take(length, self._stream)
        else:
            if self._stream not in self.outgoing:
                raise Complaint(STREAM, *about)
            if length != (4 if self._kind == CREDIT else 0):
                raise Complaint(LENGTH, *about)
        self._left = length

    def _finish(self, payload: bytes) -> "Event":
        number = int.from_bytes(payload[:8], "big")
        if self._kind >= MESSAGES:
            return self._kind, 0, payload
        if self._kind == END:
            incoming = self.incoming[self._stream]
            if number != incoming.count:
                raise Complaint(COUNT, END, self._stream, number)
            incoming.ended = True
            return END, self._stream, number
        outgoing = self.outgoing[self._stream]
        if self._kind == STOP:
            return STOP, self._stream, 0
        if number > WINDOW_MAX - outgoing.credit:
            raise Complaint(EXCESS, CREDIT, self._stream, number)
        outgoing.credit += number
        return CREDIT, self._stream, outgoing.credit
