"""The messages of a channel, and their order: bytes in, objects out. Knows no descriptor.

The client speaks first: one REQUEST, with the protocol's number, the operation and its fields. The agent answers with
STARTED, or with FAILED and what went wrong. Then streams flow (see engines/frames.py); the client may send RESIZE, and
SIGNAL, which the agent confirms with SIGNALLED. When the work is over, and every stream of the agent's has ended, the
agent says EXIT; when the client has all of it, it says DONE and closes. The agent closes last, so that nothing is under
way when a connection ends: a VMM may drop what is.

Fields are a byte that names them, four bytes of length, and bytes: arguments, environments and paths may hold
anything. An unknown field is ignored, so a newer client can ask an older agent; an unknown message is an error.

What the other end sends is checked before it is believed: lengths by engines/frames.py, counts and order here. The
first frame alone may be as long as a command line can be.
"""

import errno
import os

from .. import errors
from ..engines.frames import HEADER, frame

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

VERSION = 1
PORT = 721  # AF_VSOCK: below 1024 only root may listen
REQUEST, STARTED, FAILED, SIGNAL, RESIZE, EXIT, DONE, SIGNALLED = range(16, 24)
EXEC, DIAL, INFO, PUT, GET = range(1, 6)
STDIN, STDOUT, STDERR = range(3)
UP, DOWN = 0, 1  # the streams of DIAL

MAX_REQUEST = 1 << 22  # bytes; Linux takes 6 MiB of arguments and environment at most, and 2 MiB by default (execve(2))
MAX_WORD = 1 << 17  # bytes of an argument or a variable: MAX_ARG_STRLEN
MAX_SUBJECT = 4096  # bytes of what a failure is about

# The fields of a request, and of an answer
ARGUMENT, VARIABLE, DIRECTORY, USER, GROUP, FLAGS, SIZE, ADDRESS, PROPERTY = range(1, 10)
WITH_STDIN, TERMINAL, CLEAR_ENVIRONMENT = 1, 2, 4

# What FAILED is about
KINDS = ("request", "version", "command", "directory", "user", "group", "terminal", "process", "address", "path")

SIGNALS = range(1, 65)


class Request:
    """What a client wants. `size` is a window's rows and columns, `address` ``tcp:HOST:PORT`` or ``unix:PATH``.

    `groups` are the supplementary ones; None leaves them to the user's entry in the group file.
    """

    def __init__(
        self,
        operation: int,
        *,
        arguments: "Iterable[bytes]" = (),
        variables: "Iterable[bytes]" = (),
        directory: bytes = b"",
        user: bytes = b"",
        groups: "list[bytes] | None" = None,
        flags: int = 0,
        size: tuple[int, int] = (0, 0),
        address: bytes = b"",
    ) -> None:
        self.operation = operation
        self.arguments, self.variables = list(arguments), list(variables)
        self.directory, self.user, self.groups = directory, user, groups
        self.flags, self.size, self.address = flags, size, address

    def __repr__(self) -> str:
        return f"Request({', '.join(f'{name}={value!r}' for name, value in vars(self).items())})"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Request) and vars(self) == vars(other)

    __hash__ = None  # type: ignore[assignment]

    def encode(self) -> bytes:
        """The frame. Raises `UsageError` for what no guest could take."""
        for word in (*self.arguments, *self.variables):
            if len(word) >= MAX_WORD:
                raise errors.UsageError(
                    f"an argument or variable of {len(word)} bytes: the kernel takes at most {MAX_WORD - 1}"
                )
        fields = [(ARGUMENT, word) for word in self.arguments] + [(VARIABLE, word) for word in self.variables]
        fields += [(GROUP, group) for group in self.groups or ()]
        fields += [(name, value) for name, value in self._rest() if value]
        if self.groups == []:
            fields.append((GROUP, b""))
        if any(b"\0" in value for name, value in fields if name not in (FLAGS, SIZE)):
            raise errors.UsageError("an argument, variable, path or name holds a NUL byte, which no command can get")
        payload = bytes((0, VERSION, self.operation)) + b"".join(map(_field, fields))
        if len(payload) > MAX_REQUEST:
            raise errors.UsageError(
                f"arguments and environment of {len(payload)} bytes: at most {MAX_REQUEST} can be passed"
            )
        return frame(REQUEST, 0, payload)

    def _rest(self) -> "Iterator[tuple[int, bytes]]":
        yield DIRECTORY, self.directory
        yield USER, self.user
        yield ADDRESS, self.address
        yield FLAGS, bytes((self.flags,)) if self.flags else b""
        yield SIZE, resize(*self.size)[HEADER:] if any(self.size) else b""


def _field(field: tuple[int, bytes]) -> bytes:
    name, value = field
    return bytes((name,)) + len(value).to_bytes(4, "big") + value


def fields(payload: bytes, at: int = 0) -> "Iterator[tuple[int, bytes]]":
    """The fields from offset `at` on. Raises `ValueError` where they do not fill the payload exactly."""
    while at < len(payload):
        length = int.from_bytes(payload[at + 1 : at + 5], "big")
        value = payload[at + 5 : at + 5 + length]
        if len(payload) < at + 5 or len(value) != length:
            raise ValueError("a field is longer than its frame")
        yield payload[at], value
        at += 5 + length


def request_length(head: bytes) -> int:
    """The length of the request that begins with the header `head`. Raises `ValueError` where it is not a request."""
    length = int.from_bytes(head[4:HEADER], "big")
    if head[:4] != bytes((REQUEST, 0, 0, 0)):
        raise ValueError("the first frame is not a request")
    if not 3 <= length <= MAX_REQUEST:
        raise ValueError(f"a request of {length} bytes")
    return length


def parse_request(payload: bytes) -> Request:
    """The request in a frame. Raises `VersionError`, and `ValueError` with the reason for any other fault."""
    version = int.from_bytes(payload[:2], "big")
    if version != VERSION:
        raise VersionError(version)
    found = Request(payload[2])
    for name, value in fields(payload, 3):
        if name != FLAGS and name != SIZE and b"\0" in value:
            raise ValueError("a NUL byte")
        _set(found, name, value)
    if found.operation == EXEC and not found.arguments:
        raise ValueError("no command")
    return found


def _set(request: Request, name: int, value: bytes) -> None:
    if name == ARGUMENT:
        request.arguments.append(value)
    elif name == VARIABLE:
        request.variables.append(value)
    elif name == GROUP:
        request.groups = (request.groups or []) + ([value] if value else [])
    elif name == DIRECTORY:
        request.directory = value
    elif name == USER:
        request.user = value
    elif name == ADDRESS:
        request.address = value
    elif name == FLAGS and len(value) == 1:
        request.flags = value[0]
    elif name == SIZE:
        request.size = parse_size(value)


class VersionError(Exception):
    """A request of a version that this agent does not know."""


def started(properties: "Iterable[bytes]" = ()) -> bytes:
    """The agent has begun. For INFO, `properties` are ``name=value``."""
    return frame(STARTED, 0, b"".join(_field((PROPERTY, value)) for value in properties))


def failed(kind: str, number: int = 0, subject: bytes = b"") -> bytes:
    """The agent could not: what it is about, an errno, and the name in question."""
    return frame(FAILED, 0, bytes((KINDS.index(kind),)) + number.to_bytes(4, "big") + subject[:MAX_SUBJECT])


def signal(number: int) -> bytes:
    """Send signal `number` to the command's process group."""
    return frame(SIGNAL, 0, bytes((number,)))


def signalled() -> bytes:
    """The oldest signal that is not confirmed yet was sent to the command's process group."""
    return frame(SIGNALLED)


def resize(rows: int, columns: int) -> bytes:
    """The client's window has a new size."""
    return frame(RESIZE, 0, rows.to_bytes(2, "big") + columns.to_bytes(2, "big"))


def exited(status: int) -> bytes:
    """The command has ended, and so have all its streams. `status` is 0 to 255, or -n where signal n ended it."""
    return frame(EXIT, 0, bytes((max(status, 0), max(-status, 0))))


def done() -> bytes:
    """The client has everything."""
    return frame(DONE)


def parse_size(payload: bytes) -> tuple[int, int]:
    """Rows and columns. Raises `ValueError`."""
    if len(payload) != 4:
        raise ValueError("a window's size of another length than 4 bytes")
    return int.from_bytes(payload[:2], "big"), int.from_bytes(payload[2:], "big")


class Client:
    """The client's view of the order of messages. `status` is the command's, once it has ended, or -n for signal n.

    `signals` are the times (monotonic) of signals that were sent and are not confirmed yet.
    """

    def __init__(self) -> None:
        self.has_started = False
        self.status: int | None = None
        self.signals: list[float] = []
        self._said: list[str] = []  # no dictionary: in the static binary's exec the other end could make one slow

    @property
    def properties(self) -> dict[str, str]:
        """What the agent says of itself and of the guest, where that was asked for."""
        return {name: text for name, _, text in (line.partition("=") for line in self._said)}

    def receive(self, kind: int, payload: bytes) -> None:
        """Account for a message of the agent's. Raises `StartError` for FAILED, and `ProtocolError`."""
        try:
            if kind == STARTED and not self.has_started:
                self._start(payload)
            elif kind == FAILED and not self.has_started:
                raise _failure(payload)
            elif kind == EXIT and self.has_started and self.status is None and len(payload) == 2:
                self.status = -payload[1] or payload[0]
            elif kind == SIGNALLED and self.signals and not payload:
                del self.signals[0]
            else:
                raise ValueError(f"an unexpected message of type {kind} and {len(payload)} bytes")
        except ValueError as error:
            raise errors.ProtocolError(str(error)) from None

    def _start(self, payload: bytes) -> None:
        self._said += [value.decode(errors="replace") for name, value in fields(payload) if name == PROPERTY]
        self.has_started = True


def _failure(payload: bytes) -> errors.StartError:
    if not 5 <= len(payload) <= 5 + MAX_SUBJECT or payload[0] >= len(KINDS):
        raise ValueError("a failure of an unknown kind or length")
    number = int.from_bytes(payload[1:5], "big")
    subject = os.fsdecode(payload[5:])
    return errors.start_error(KINDS[payload[0]], number if number in errno.errorcode else 0, subject)


class Server:
    """The agent's view of the order of messages."""

    def __init__(self) -> None:
        self.has_exited = self.is_done = False

    def receive(self, kind: int, payload: bytes) -> "tuple[int, tuple[int, int]]":
        """A message of the client's: its type and its numbers. Raises `ValueError`."""
        if kind == SIGNAL and len(payload) == 1 and payload[0] in SIGNALS:
            return SIGNAL, (payload[0], 0)
        if kind == RESIZE:
            return RESIZE, parse_size(payload)
        if kind == DONE and not payload and self.has_exited and not self.is_done:
            self.is_done = True
            return DONE, (0, 0)
        raise ValueError(f"an unexpected message of type {kind} and {len(payload)} bytes")
