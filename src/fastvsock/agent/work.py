"""What a channel does in the guest: runs a command, joins a socket, or answers a question; `serve` is its whole life.

A channel has one thread, which sleeps in poll(2) while nothing moves. Its connection is its only tie to the host: when
that is cut, the work ends, and every process of the command's session with it.
"""

import _socket
import _thread
import errno
import fcntl
import os
import select
import termios
from abc import ABC, abstractmethod
from time import monotonic

from .. import __version__
from ..channels import protocol
from ..channels.protocol import DOWN, STDERR, STDIN, STDOUT, UP, Request
from ..engines import exchange
from ..engines.exchange import Exchange, splices_well
from ..engines.frames import HEADER
from ..stdio import open_null
from .processes import Child, Children
from .spawn import DEFAULT_PATH, Command, SpawnError, spawn

HANDSHAKE = 10.0  # seconds in which a client has to say what it wants
FAREWELL = 10.0  # seconds in which a client has to say that it has everything, once it has been sent
LAST_WORDS = 1000  # milliseconds for what a terminal has yet to say of a command that has ended
CONNECT_TIME = 10.0  # seconds
LINE, LONGEST_LINE = b"CONNECT ", 24
PIECE = 1 << 16  # bytes

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from . import users
    from .copies import Copying


class Cleanup:
    """What is to be undone at the end of a block, last things first: contextlib's ExitStack costs 300 KiB."""

    def __init__(self) -> None:
        self._undo: list[tuple[Callable[..., object], tuple[object, ...]]] = []

    def callback(self, function: "Callable[..., object]", *arguments: object) -> None:
        """Call `function` at the end."""
        self._undo.append((function, arguments))

    def __enter__(self) -> "Cleanup":
        return self

    def __exit__(self, *exception: object) -> None:
        while self._undo:
            function, arguments = self._undo.pop()
            try:
                function(*arguments)
            except OSError:
                pass  # what is closed twice is closed


class EndedError(Exception):
    """The client has gone, or does not keep to the protocol: the argument says so."""


class Agent:
    """What all channels of a process share. `limit` is RLIMIT_NOFILE for commands.

    `forwards` serves a connection whose CONNECT names another port, as a VMM's socket has them.
    """

    def __init__(
        self,
        limit: tuple[int, int],
        engine: str | None = None,
        forwards: "Mapping[int, Callable[[_socket.socket], object]] | None" = None,
    ) -> None:
        self.limit, self.engine, self.forwards = limit, engine, forwards or {}
        self.children = Children()
        self.started = monotonic()
        self.open: dict[Channel, None] = {}
        self._lock = _thread.allocate_lock()

    def serve(self, sock: _socket.socket) -> None:
        """Serve one connection to its end, and close it. Raises `EndedError`, without words where nothing is wrong."""
        with Cleanup() as stack:
            stack.callback(sock.close)
            sock.settimeout(HANDSHAKE)
            try:
                channel = Channel(self, sock, stack)
                with self._lock:
                    self.open[channel] = None
                stack.callback(self._forget, channel)
                channel.run()
            except OSError as error:
                raise EndedError(f"cannot serve a connection: {error.strerror or error}") from None

    def _forget(self, channel: "Channel") -> None:
        with self._lock:
            del self.open[channel]

    def cut(self) -> None:
        """End all channels, as if their clients had gone."""
        with self._lock:
            for channel in self.open:
                channel.cut()


class Channel:
    """One connection."""

    def __init__(self, agent: Agent, sock: _socket.socket, stack: Cleanup) -> None:
        self._agent, self._sock, self._stack = agent, sock, stack
        self._wake = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        stack.callback(os.close, self._wake)
        self._cut = False

    def cut(self) -> None:
        """End it, from another thread."""
        self._cut = True
        os.eventfd_write(self._wake, 1)

    def run(self) -> None:
        """Read the request, and do what it says. Raises `EndedError`, `OSError`."""
        try:
            request = self._read_request()
        except protocol.VersionError:
            return self._refuse("version", subject=b"%d" % protocol.VERSION)
        except ValueError as error:
            self._refuse("request", subject=str(error).encode())
            raise EndedError(f"a client sent {error}") from None
        works: dict[int, Callable[..., Work | Copying]] = {
            protocol.EXEC: Execution,
            protocol.DIAL: Dialling,
            protocol.INFO: Information,
        }
        if request.operation in (protocol.PUT, protocol.GET):
            from . import copies  # which loads what nothing else needs

            works[request.operation] = copies.Copying
        work = works.get(request.operation)
        if work is None:
            return self._refuse("request", subject=b"operation %d" % request.operation)
        self._sock.setblocking(False)
        if self._sock.family == _socket.AF_UNIX:
            from ..relaying import raise_send_buffer  # a guest's connections are no Unix sockets

            raise_send_buffer(self._sock)
        try:
            work(self._agent, self._sock, self._wake, self._stack, lambda: self._cut).run(request)
        except RefusedError as refusal:
            self._refuse(*refusal.args)

    def _refuse(self, kind: str, number: int = 0, subject: bytes = b"") -> None:
        """Say what cannot be, and wait for the client to have read it: a reset would overtake it."""
        try:
            self._sock.settimeout(FAREWELL)
            self._sock.sendall(protocol.failed(kind, number, subject))
            deadline = monotonic() + FAREWELL
            while self._sock.recv(PIECE) and monotonic() < deadline:
                pass
        except OSError:
            pass  # it has gone, or stays without a word

    def _read_request(self) -> Request:
        head = self._receive(HEADER)
        if head == LINE and self._sock.family == _socket.AF_UNIX:
            forward = self._agent.forwards.get(self._shake())
            if forward:
                self._sock.settimeout(None)
                forward(self._sock)
                raise EndedError("")
            head = self._receive(HEADER)
        return protocol.parse_request(self._receive(protocol.request_length(head)))

    def _shake(self) -> int:
        """Answer a client that takes our Unix socket for a VMM's, which makes it one; the port that it asks for."""
        line = b""
        while not line.endswith(b"\n") and len(line) < LONGEST_LINE:
            line += self._receive(1)
        self._sock.sendall(b"OK 1073741824\n")
        return int(line) if line.strip().isdigit() else -1

    def _receive(self, size: int) -> bytes:
        """Exactly `size` bytes: what is behind them may be a stream's. Raises `EndedError`."""
        parts = []
        deadline = monotonic() + HANDSHAKE
        while size:
            try:
                part = self._sock.recv(min(size, PIECE))
            except TimeoutError:
                part, deadline = b"", 0.0
            if monotonic() > deadline:
                raise EndedError(f"a client took more than {HANDSHAKE:g} s for its request")
            if not part:
                raise EndedError("")  # it looked whether anybody is here
            parts.append(part)
            size -= len(part)
        return b"".join(parts)


class RefusedError(Exception):
    """The arguments of `protocol.failed`."""


class Work(ABC):
    """What the kinds of work have in common: the exchange of frames, and how it ends."""

    def __init__(
        self,
        agent: Agent,
        sock: _socket.socket,
        wake: int,
        stack: Cleanup,
        was_cut: "Callable[[], bool]",
    ) -> None:
        self._agent, self._wake, self._stack, self._was_cut = agent, wake, stack, was_cut
        self._exchange = Exchange(sock.fileno(), wake, engine=agent.engine, splices=splices_well(sock.family))
        stack.callback(self._exchange.close)
        self._server = protocol.Server()
        self._files: dict[int, int] = {}  # ours, by stream
        self._sending: set[int] = set()  # streams that have yet to end
        stack.callback(self._close_all)

    @abstractmethod
    def run(self, request: Request) -> None:
        """Do it. Raises `RefusedError` where it cannot be begun, and `EndedError`."""

    def _close(self, stream: int) -> None:
        fd = self._files.pop(stream, -1)
        if fd >= 0:
            self._exchange.release(stream)
            os.close(fd)

    def _close_all(self) -> None:
        for stream in list(self._files):
            self._close(stream)

    def _next(self, timeout: int = -1) -> tuple[int, int, object]:
        """The exchange's next event. Raises `EndedError` where the client has gone."""
        event, stream, value = self._exchange.run(timeout)
        if event == exchange.BROKEN:
            raise EndedError(f"a client sent {exchange.complaint(value)}")
        if event == exchange.CLOSED or self._was_cut():
            raise EndedError("")
        if event in (exchange.SOURCE_ENDED, exchange.STOPPED):
            self._sending.discard(stream)
        return event, stream, value

    def _say_goodbye(self, status: int) -> None:
        """Every stream has ended: say so, and wait for the client to have all of it."""
        self._exchange.send(protocol.exited(status))
        self._server.has_exited = True
        deadline = monotonic() + FAREWELL
        unsent = self._exchange.unsent
        while not self._server.is_done:
            try:
                event, kind, value = self._next(1000)
            except EndedError:
                return  # it has, or does not care
            if event == exchange.MESSAGE:
                self._receive(kind, value)
            elif self._exchange.unsent < unsent:  # a slow client is not a silent one
                deadline = monotonic() + FAREWELL
            elif event == exchange.TIMEOUT and not self._exchange.unsent and monotonic() > deadline:
                return
            unsent = self._exchange.unsent

    def _receive(self, kind: int, value: object) -> "tuple[int, tuple[int, int]]":
        assert isinstance(value, bytes)
        try:
            return self._server.receive(kind, value)
        except ValueError as error:
            raise EndedError(f"a client sent {error}") from None


class Execution(Work):
    """Runs a command."""

    def run(self, request: Request) -> None:
        """Raises `RefusedError` where it cannot be started, and `EndedError`."""
        user = self._user(request)
        terminal = bool(request.flags & protocol.TERMINAL)
        with Cleanup() as theirs:
            files = self._terminal(theirs, request) if terminal else self._pipes(theirs, request.flags)
            environment = _environment(request, user)
            command = Command(
                request.arguments, environment, request.directory, user, files, terminal, self._agent.limit
            )
            child = self._start(command, request)
        try:
            self._exchange.send(protocol.started())
            status = self._attend(child, terminal)
        except EndedError:
            self._close_all()
            child.end_session()
            raise
        finally:
            self._reap(child)
        self._say_goodbye(status)

    def _user(self, request: Request) -> "users.User | None":
        if not request.user and request.groups is None:
            return None
        from . import users  # few ask for one, and pwd stays in memory

        try:
            user = users.find(request.user, request.groups)
        except users.UnknownNameError as error:
            kind, name = error.args
            raise RefusedError(kind, 0, name) from None
        return user

    def _start(self, command: Command, request: Request) -> Child:
        try:
            return self._agent.children.start(lambda: spawn(command), self._wake)
        except SpawnError as error:
            stage, number = error.args
            subjects = {"command": request.arguments[0], "directory": request.directory, "user": request.user}
            raise RefusedError(stage, number, subjects.get(stage, b"")) from None
        except OSError as error:
            raise RefusedError("process", error.errno or 0) from None

    def _pipes(self, theirs: Cleanup, flags: int) -> list[int]:
        """Make the command's three pipes, and return its ends; ours serve the streams."""
        try:
            if flags & protocol.WITH_STDIN:
                its_in, ours = self._pipe(theirs, write=True)
                self._files[STDIN] = ours
            else:
                its_in = open_null()
                theirs.callback(os.close, its_in)
            files = [its_in]
            for stream in STDOUT, STDERR:
                its, self._files[stream] = self._pipe(theirs, write=False)
                files.append(its)
        except OSError as error:
            raise RefusedError("process", error.errno or 0) from None
        if STDIN in self._files:
            self._exchange.add_target(STDIN, self._files[STDIN])
        for stream in STDOUT, STDERR:
            self._exchange.add_source(stream, self._files[stream])
            self._sending.add(stream)
        return files

    def _pipe(self, theirs: Cleanup, *, write: bool) -> tuple[int, int]:
        read_end, write_end = os.pipe2(os.O_CLOEXEC)
        its, ours = (read_end, write_end) if write else (write_end, read_end)
        theirs.callback(os.close, its)
        os.set_blocking(ours, False)
        return its, ours

    def _terminal(self, theirs: Cleanup, request: Request) -> list[int]:
        """Open a pty, and return the command's side for all three; ours is both streams."""
        try:
            ours, its = os.openpty()
        except OSError as error:
            raise RefusedError("terminal", error.errno or 0) from None
        theirs.callback(os.close, its)
        self._files[STDOUT] = ours
        os.set_blocking(ours, False)
        if any(request.size):
            _resize(ours, request.size)
        if request.flags & protocol.WITH_STDIN:
            self._exchange.add_target(STDIN, ours)
        self._exchange.add_source(STDOUT, ours)
        self._sending.add(STDOUT)
        return [its, its, its]

    def _attend(self, child: Child, terminal: bool) -> int:
        """Serve the streams until the command and they have ended. The status is the command's."""
        finishing = False
        while self._sending or child.status is None:
            event, stream, value = self._next(LAST_WORDS if terminal and finishing else -1)
            if event == exchange.MESSAGE:
                self._obey(child, *self._receive(stream, value))
            elif event == exchange.DELIVERED and stream == STDIN:
                self._end_of_input(terminal)
            elif event == exchange.SOURCE_ENDED and value:  # EIO: the terminal has nobody left at its other side
                self._exchange.end(stream)
            elif event in (exchange.TARGET_LOST, exchange.STOPPED) and not terminal:
                self._close(stream)
            elif event == exchange.STOPPED:
                self._hang_up()
            elif event == exchange.TIMEOUT:
                self._exchange.end(STDOUT)
                self._sending.clear()
            if child.status is not None and not finishing:
                finishing = True
                if not terminal:
                    for stream in self._sending:
                        self._exchange.finish(stream)
        return child.status

    def _end_of_input(self, terminal: bool) -> None:
        if not terminal:
            self._close(STDIN)
            return
        try:
            control = termios.tcgetattr(self._files[STDOUT])[6]
            os.write(self._files[STDOUT], bytes(control[termios.VEOF]))
        except (OSError, termios.error):
            pass  # nobody reads it, or it was hung up

    def _hang_up(self) -> None:
        """Close our side of the terminal: its processes get SIGHUP. The number stays for stdin, and leads nowhere."""
        read_end, write_end = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        os.close(read_end)
        os.dup2(write_end, self._files[STDOUT], inheritable=False)
        os.close(write_end)

    def _obey(self, child: Child, kind: int, numbers: tuple[int, int]) -> None:
        if kind == protocol.SIGNAL:
            child.signal(numbers[0])
            if self._exchange.unsent < PIECE:  # a client that reads nothing fills no memory
                self._exchange.send(protocol.signalled())
        elif kind == protocol.RESIZE and STDOUT in self._files:
            _resize(self._files[STDOUT], numbers)

    def _reap(self, child: Child) -> None:
        poll = select.poll()
        poll.register(self._wake, select.POLLIN)
        while child.status is None:  # news of its end is under way, or it waits for a disk, and cannot be killed
            poll.poll()
            os.eventfd_read(self._wake)
        self._agent.children.forget(child)


def _environment(request: Request, user: "users.User | None") -> "dict[bytes, bytes]":
    """The agent's own environment, what a login as the user would set, and what the client asks for."""
    if request.flags & protocol.CLEAR_ENVIRONMENT:
        found: dict[bytes, bytes] = {}
    else:
        found = dict(os.environb)
        found.pop(b"NOTIFY_SOCKET", None)
        found.setdefault(b"PATH", DEFAULT_PATH)
        found.setdefault(b"HOME", b"/")
    if user and not request.flags & protocol.CLEAR_ENVIRONMENT:
        found[b"HOME"] = os.fsencode(user.home)
        if user.name:
            found[b"USER"] = found[b"LOGNAME"] = os.fsencode(user.name)
    for variable in request.variables:
        name, equals, value = variable.partition(b"=")
        if name and equals:
            found[name] = value
    return found


def _resize(fd: int, size: tuple[int, int]) -> None:
    rows, columns = size
    try:
        fcntl.ioctl(fd, termios.TIOCSWINSZ, b"".join(n.to_bytes(2, "little") for n in (rows, columns, 0, 0)))
    except OSError:
        pass  # the terminal has gone


class Dialling(Work):
    """Joins a connection to a socket of the guest's, both half-closes intact."""

    def run(self, request: Request) -> None:
        """Raises `RefusedError` where nobody answers there, and `EndedError`."""
        try:
            near = _dial(os.fsdecode(request.address))
        except OSError as error:
            raise RefusedError("address", error.errno or errno.EHOSTUNREACH, request.address) from None
        except ValueError:
            raise RefusedError("request", 0, b"the address " + request.address) from None
        self._stack.callback(near.close)
        fd = near.fileno()
        self._exchange.add_target(UP, fd)
        self._exchange.add_source(DOWN, fd)
        self._sending.add(DOWN)
        self._exchange.send(protocol.started())
        receiving = True
        while self._sending or receiving:
            event, stream, value = self._next()
            if event == exchange.MESSAGE:
                self._receive(stream, value)
            elif event == exchange.DELIVERED:
                receiving = False
                _shut(near, _socket.SHUT_WR)
            elif event == exchange.STOPPED:
                _shut(near, _socket.SHUT_RD)
            elif event == exchange.SOURCE_ENDED and value:
                return  # it was reset; to close without an end says so
        self._say_goodbye(0)


def _dial(address: str) -> _socket.socket:
    """A connected socket that does not block. Raises `OSError`, and `ValueError` for what is not an address."""
    kind, _, where = address.partition(":")
    if kind == "unix" and where:
        return _connected(_socket.AF_UNIX, where)
    host, colon, port = where.rpartition(":")
    if kind != "tcp" or not (host and colon and port.isascii() and port.isdigit() and 0 < int(port) < 1 << 16):
        raise ValueError(address)
    failure: OSError = OSError(errno.EHOSTUNREACH, "no address")
    for family, _, _, _, where_to in _resolve(host, int(port)):
        try:
            return _connected(family, where_to)
        except OSError as error:
            failure = error
    raise failure


def _resolve(host: str, port: int) -> "list[tuple[int, int, int, str, tuple[str, int]]]":
    try:
        return _socket.getaddrinfo(host, port, 0, _socket.SOCK_STREAM)  # type: ignore[return-value]
    except _socket.gaierror:
        raise OSError(errno.EHOSTUNREACH, "unknown host") from None


def _connected(family: int, address: "str | tuple[str, int]") -> _socket.socket:
    sock = _socket.socket(family, _socket.SOCK_STREAM)
    try:
        sock.settimeout(CONNECT_TIME)
        sock.connect(address)
        sock.setblocking(False)
        if family != _socket.AF_UNIX:
            sock.setsockopt(_socket.IPPROTO_TCP, _socket.TCP_NODELAY, 1)
    except BaseException as error:
        sock.close()
        if isinstance(error, TimeoutError):
            raise OSError(errno.ETIMEDOUT, os.strerror(errno.ETIMEDOUT)) from None
        raise
    return sock


def _shut(sock: _socket.socket, how: int) -> None:
    try:
        sock.shutdown(how)
    except OSError:
        pass  # its peer has gone


class Information(Work):
    """Says what the guest is."""

    def run(self, request: Request) -> None:
        """Raises `EndedError`."""
        system = os.uname()
        found = {
            "version": __version__,
            "protocol": str(protocol.VERSION),
            "engine": self._exchange.engine,
            "pid": str(os.getpid()),
            "channels": str(len(self._agent.open)),
            "uptime": f"{monotonic() - self._agent.started:.3f}",
            "hostname": system.nodename,
            "kernel": system.release,
            "machine": system.machine,
        }
        self._exchange.send(protocol.started(f"{name}={value}".encode() for name, value in found.items()))
        self._say_goodbye(0)
