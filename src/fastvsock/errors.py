"""Every exception that this package raises, each with its exit code and its sentence.

A sentence says what failed, with which path and port, why, and what to try; the commands print it behind
``fastvsock: `` and end with `exit_code`: see stdio.py. A Python program gets the same sentence; what only a command
line offers is the `hint`, which the commands that have that option print. Each class also derives from the built-in
exception that a caller would expect (`FileNotFoundError`, `TimeoutError`, ...), so ``except OSError`` keeps working in
programs that know nothing of this package.
"""

import errno
import os

TYPE_CHECKING = False
if TYPE_CHECKING:
    from .copying.result import CopyResult

USAGE = 2
"""Exit code for wrong usage, as in the shell's own builtins; every other failure is 1."""

NOT_FOUND, NOT_EXECUTABLE = 127, 126
MISSING_COMMAND = "missing COMMAND after --"
SUN_PATH_MAX = 107  # struct sockaddr_un has 108 bytes, one of them for the NUL: unix(7)


class FastvsockError(Exception):
    """Base of all errors of this package.

    `exit_code` is what a command ends with, `hint` what its options can do about the error, or empty.
    """

    exit_code = 1
    hint = ""


class UsageError(FastvsockError):
    """Wrong usage of a command."""

    exit_code = USAGE


class PortError(FastvsockError, ValueError):
    """A guest port that is not a number from 0 to 4294967295."""

    exit_code = USAGE

    def __init__(self, port: object) -> None:
        super().__init__(port)
        self.port = port

    def __str__(self) -> str:
        return f"invalid guest port {self.port!r}: expected a number from 0 to 4294967295"


class DurationError(FastvsockError, ValueError):
    """A time that is not a number of seconds, or outside of what `allowed` describes."""

    def __init__(self, name: str, value: object, allowed: str) -> None:
        super().__init__(name, value, allowed)
        self.name, self.value, self.allowed = name, value, allowed

    def __str__(self) -> str:
        return f"invalid {self.name} {self.value!r}: expected seconds, {self.allowed}"


class EngineError(FastvsockError):
    """The engine that was asked for does not exist, or cannot be used here."""


class UnknownEngineError(EngineError, ValueError):
    """The engine that was asked for does not exist. `source` is where its name comes from, or empty."""

    exit_code = USAGE

    def __init__(self, engine: str, source: str = "") -> None:
        super().__init__(engine, source)
        self.engine, self.source = engine, source

    def __str__(self) -> str:
        source = f" (from {self.source})" if self.source else ""
        return f"unknown engine {self.engine!r}{source}: use auto, splice or copy"


class BundleError(FastvsockError):
    """A RunCVM bundle cannot be worked on as it is."""


class CircleError(BundleError):
    """A symbolic link in a bundle that leads back to itself."""


class ChangedError(BundleError):
    """Something else changed a file of a bundle while an install or uninstall was at work on it."""

    def __init__(self, root: str, path: str) -> None:
        super().__init__(root, path)
        self.root, self.path = root, path

    def __str__(self) -> str:
        return (
            f"{self.root}/{self.path}: something else changed it during this run, so it was left as it is now: "
            "run the command again"
        )


class BenchmarkError(FastvsockError):
    """`fastvsock bench` could not take a sample."""


class CommandError(FastvsockError, OSError):
    """A command cannot be run. The exit codes are those of shells: POSIX, 2.8.2 Exit Status for Commands."""

    def __init__(self, name: str, error: OSError) -> None:
        super().__init__()
        self.args = (name, error)
        self.name, self.errno, self.reason = name, error.errno, error.strerror or str(error)
        self.exit_code = NOT_FOUND if error.errno == errno.ENOENT else NOT_EXECUTABLE

    def __str__(self) -> str:
        return f"cannot run {printable(self.name)}: {self.reason}"


class ConnectError(FastvsockError, OSError):
    """`connect()` failed. `uds` is the path, `port` the guest port, `detail` what the subclass adds."""

    number = 0
    sentence = "{uds}: cannot connect to guest port {port}: {detail}"

    def __init__(self, uds: str, port: int, detail: str = "") -> None:
        super().__init__()
        self.args = (uds, port, detail)
        self.uds, self.port, self.detail = uds, port, detail
        self.errno = self.number or None

    def __str__(self) -> str:
        return self.sentence.format(uds=printable(self.uds), port=self.port, detail=self.detail)


class SocketMissingError(ConnectError, FileNotFoundError):
    """Nothing is at the path of the UDS."""

    number = errno.ENOENT
    sentence = "{uds}: no such socket (for guest port {port}): is the VMM running, and is this its vsock uds_path?"
    hint = "--wait SECONDS waits for it"


class EmptyPathError(ConnectError, FileNotFoundError):
    """The path of the UDS is empty, as one from a variable that is not set."""

    exit_code = USAGE
    number = errno.ENOENT
    sentence = "the path of the UDS is empty (for guest port {port}): give the vsock uds_path of the VMM"


class NotASocketError(ConnectError):
    """What is at the path is not a Unix stream socket."""

    number = errno.ENOTSOCK
    sentence = (
        "{uds}: not a Unix stream socket but {detail} (for guest port {port}): give the vsock uds_path of the VMM"
    )


class SocketPermissionError(ConnectError, PermissionError):
    """The UDS, or a folder on the way to it, may not be used by this user."""

    number = errno.EACCES
    sentence = (
        "{uds}: permission denied (for guest port {port}): connecting takes write permission on the socket and "
        "search permission on its folders; run as the user that the VMM runs as, or change the mode"
    )


class StaleSocketError(ConnectError, ConnectionRefusedError):
    """A socket file that nobody listens on any more."""

    number = errno.ECONNREFUSED
    sentence = (
        "{uds}: connection refused (for guest port {port}): nobody listens on this socket file, "
        "the VMM has ended or has not opened it yet"
    )
    hint = "--wait SECONDS retries"


class PathTooLongError(ConnectError, ValueError):
    """A path over the 107 bytes of a Unix socket address, where /proc cannot help (unix(7), sun_path)."""

    number = errno.ENAMETOOLONG
    sentence = (
        "{uds}: the path is longer than the 107 bytes of a Unix socket address, and /proc is not there to shorten it "
        "(for guest port {port}): use a shorter path, a symbolic link for instance"
    )


class HandshakeError(ConnectError):
    """The UDS took the connection, but the handshake for the port failed."""


class HandshakeTimeoutError(HandshakeError, TimeoutError):
    """No complete answer within the timeout."""

    number = errno.ETIMEDOUT
    sentence = (
        "{uds}: no answer for guest port {port} within {detail} s: the VMM may be paused, out of file descriptors, "
        "or not a VMM at all"
    )
    hint = "--timeout SECONDS waits longer"


class GuestRefusedError(HandshakeError, ConnectionRefusedError):
    """The VMM closed without ``OK``: a refusal has no words, only EOF or a reset (Firecracker's docs/vsock.md)."""

    number = errno.ECONNREFUSED
    sentence = (
        "{uds}: guest port {port} refused: nothing is listening on it in the guest, the guest is not up yet, "
        "or the VMM has no connection left"
    )
    hint = "--wait SECONDS retries"


class BadReplyError(HandshakeError):
    """The answer was not ``OK <n>``."""

    number = errno.EPROTO
    sentence = (
        "{uds}: the answer to CONNECT {port} was {detail}, not 'OK <n>': "
        "this socket does not speak hybrid vsock; give the vsock uds_path of the VMM"
    )


class _NumberedError(FastvsockError, OSError):
    """An error with a sentence of its own; `errno` is the cause."""

    def __init__(self, message: str, number: int) -> None:
        super().__init__()
        self.args = (message, number)
        self.message, self.errno = message, number

    def __str__(self) -> str:
        return self.message


class RelayError(_NumberedError):
    """A relay ended before its time, or could not begin."""


class ConnectionBrokenError(RelayError, ConnectionError):
    """The socket to the VMM broke in mid-stream; what had arrived was delivered."""


class IdleTimeoutError(RelayError, TimeoutError):
    """Nothing moved through a relay for its `idle_timeout`."""

    hint = "--idle-timeout SECONDS waits longer"


class StreamError(RelayError):
    """Reading the near end's input or writing its output failed (a full disk, a bad descriptor)."""


NO_CHANNEL = 125
"""Exit code of `fastvsock exec` where it failed itself and not the command: docker's number."""


class ChannelError(FastvsockError, OSError):
    """A channel to the guest's agent failed."""

    exit_code = NO_CHANNEL


class ProtocolError(ChannelError):
    """The other end of a channel does not keep to the protocol; it may be no agent at all."""

    def __init__(self, what: str) -> None:
        super().__init__()
        self.args = (what,)
        self.what, self.errno = what, errno.EPROTO

    def __str__(self) -> str:
        return (
            f"the guest's agent sent {self.what}: it may be of another release, or another program listens on its port"
        )


class AgentTimeoutError(ChannelError, TimeoutError):
    """The guest took the connection, and no agent answered."""

    hint = "--timeout SECONDS waits longer"

    def __init__(self, seconds: float) -> None:
        super().__init__()
        self.args = (seconds,)
        self.seconds, self.errno = seconds, errno.ETIMEDOUT

    def __str__(self) -> str:
        return (
            f"no answer from the guest's agent within {self.seconds:g} s: the VM may be paused, or another program "
            "listens on its port"
        )


class UnansweredSignalError(ChannelError, TimeoutError):
    """A signal came again for a command whose guest has not taken the one before."""

    def __init__(self, name: str, seconds: float) -> None:
        super().__init__()
        self.args = (name, seconds)
        self.name, self.seconds, self.errno = name, seconds, errno.ETIMEDOUT

    def __str__(self) -> str:
        return (
            f"{self.name} again, and no answer from the guest's agent for {self.seconds:.0f} s: the VM may be "
            "paused, or the guest may hang; the command in it may still run"
        )


class ChannelBrokenError(ChannelError, ConnectionError):
    """The connection ended before the work was over; `how_far` says in words what had been moved."""

    def __init__(self, how_far: str, number: int = 0) -> None:
        super().__init__()
        self.args = (how_far, number)
        self.how_far, self.errno = how_far, number or None

    def __str__(self) -> str:
        reason = f" ({os.strerror(self.errno)})" if self.errno else ""
        return (
            f"the connection to the guest's agent ended early{reason}, after {self.how_far}: the agent, the guest or "
            "the VMM has ended, or the VM was restored"
        )


NOT_STARTED = {
    "request": "the guest's agent does not understand the request: {subject}",
    "version": "the guest's agent knows the protocol's version {subject} only: install the same release of "
    "fastvsock on the host and in the guest",
    "command": "cannot run {subject} in the guest: {reason}",
    "directory": "cannot use the guest's directory {subject}: {reason}",
    "user": "cannot run as user {subject} in the guest: {reason}",
    "group": "unknown group {subject} in the guest: use a name of its /etc/group, or a number",
    "terminal": "cannot open a terminal in the guest: {reason}",
    "process": "the guest's agent cannot start a process: {reason}",
    "address": "cannot connect to {subject} in the guest: {reason}",
    "path": "cannot copy to {subject} in the guest: {reason}",
}


class StartError(FastvsockError, OSError):
    """The guest's agent could not start the work. `kind` is what it is about, `subject` the name in question."""

    exit_code = NOT_EXECUTABLE

    def __init__(self, kind: str, number: int, subject: str) -> None:
        super().__init__()
        self.args = (kind, number, subject)
        self.kind, self.errno, self.subject = kind, number or None, subject
        self.filename = subject or None
        if kind == "command" and number == errno.ENOENT:
            self.exit_code = NOT_FOUND
        elif kind == "path":
            self.exit_code = 1
        elif kind not in ("command", "directory", "user", "group"):
            self.exit_code = NO_CHANNEL

    def __str__(self) -> str:
        if self.errno:
            reason = os.strerror(self.errno)
        else:
            reason = "there is no such user; use a name of its /etc/passwd, or a number"
        return NOT_STARTED[self.kind].format(subject=printable(self.subject), reason=reason)


class StartMissingError(StartError, FileNotFoundError):
    """The command, or its directory, is not there."""


class StartPermissionError(StartError, PermissionError):
    """The command, or its directory, may not be used by that user."""


class StartRefusedError(StartError, ConnectionRefusedError):
    """Nobody listens on the address to connect to."""


def start_error(kind: str, number: int, subject: str) -> StartError:
    """The `StartError` of the class that a caller would expect for the errno `number`."""
    classes = {errno.ENOENT: StartMissingError, errno.EACCES: StartPermissionError, errno.EPERM: StartPermissionError}
    classes[errno.ECONNREFUSED] = StartRefusedError
    return classes.get(number, StartError)(kind, number, subject)


class CopyError(FastvsockError, OSError):
    """Something of a copy is not at its target. `result` says what is; `failed` are the entries that are not."""

    def __init__(self, result: "CopyResult") -> None:
        super().__init__()
        self.args = (result,)
        self.result, self.failed = result, result.failed
        self.errno, self.filename = self.failed[0].errno or None, self.failed[0].path

    def __str__(self) -> str:
        more = len(self.failed) - 1
        return f"{self.failed[0]}" + (f" (and {more} more in `failed`)" if more else "")


class CopyMissingError(CopyError, FileNotFoundError):
    """The first entry that is not at the target is not there to be copied, or its folder is not."""


class CopyPermissionError(CopyError, PermissionError):
    """The first entry that is not at the target may not be read or written."""


def copy_error(result: "CopyResult") -> CopyError:
    """The `CopyError` of the class that a caller would expect for the first failure."""
    classes = {errno.ENOENT: CopyMissingError, errno.EACCES: CopyPermissionError, errno.EPERM: CopyPermissionError}
    return classes.get(result.failed[0].errno, CopyError)(result)


class EmulatorError(_NumberedError):
    """The emulator cannot listen on its UDS."""


def printable(path: str) -> str:
    """`path` as a sentence shows it: on one line, and bytes that are no text as they were typed, like ``\\xff``."""
    return path if path.isprintable() else "".join(map(_shown, path))


def _shown(character: str) -> str:
    if character.isprintable():
        return character
    if "\udc80" <= character <= "\udcff":  # a byte: PEP 383
        return f"\\x{ord(character) - 0xDC00:02x}"
    return character.encode("unicode_escape").decode()
