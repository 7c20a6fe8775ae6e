"""Where a service listens, and how it tells that it does.

An address is ``HOST:PORT``, ``[HOST]:PORT`` or ``unix:PATH``. A port of 0 lets the kernel choose, which alone cannot
collide. Loopback is the rule: an address that other machines reach must be asked for.

A socket file leaves it to its owner who may connect; how it is made and removed: socketfile.py.

listen(2) is what makes the kernel accept, so everything that `announce` does comes after it.
"""

import errno
import fcntl
import os
import socket
import stat
from collections.abc import Callable
from time import sleep

from .. import errors
from ..host.socket_file import SocketFile

BACKLOG = 4096  # the kernel's own cap, net.core.somaxconn, since Linux 5.4
FIRST_PASSED = 3  # SD_LISTEN_FDS_START of sd_listen_fds(3)
OWNER_ONLY = 0o600
FIFO_PAUSE = 0.02  # seconds


class Address:
    """A TCP address, or, where `path` is not empty, a Unix socket's."""

    __slots__ = ("host", "path", "port")

    def __init__(self, host: str = "", port: int = 0, path: str = "") -> None:
        self.host, self.port, self.path = host, port, path

    def __str__(self) -> str:
        if self.path:
            return f"unix:{self.path}"
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


def parse(text: str, *, remote: bool = False) -> Address:
    """The address that `text` means. Raises `UsageError`, also for one that is not loopback unless `remote`."""
    if text.startswith("unix:") and len(text) > len("unix:"):
        return Address(path=text.removeprefix("unix:"))
    host, colon, digits = text.rpartition(":")
    host = host[1:-1] if host.startswith("[") and host.endswith("]") else host.replace(":", " ")
    host = _normal("127.0.0.1" if host == "localhost" else host)
    if not (host and colon and digits.isascii() and digits.isdigit() and len(digits) < 6 and int(digits) < 1 << 16):
        raise errors.UsageError(
            f"{text!r} is no address to listen on: give 127.0.0.1:PORT, [::1]:PORT (PORT 0: the kernel chooses) "
            "or unix:PATH"
        )
    _check_reach(host, text, remote)
    return Address(host, int(digits))


def _normal(host: str) -> str:
    """A numeric address in its usual spelling; nothing for what is none."""
    number, percent, zone = host.partition("%")
    family = socket.AF_INET6 if ":" in number else socket.AF_INET
    try:
        return socket.inet_ntop(family, socket.inet_pton(family, number)) + percent + zone
    except (OSError, ValueError):
        return ""


def _check_reach(host: str, text: str, remote: bool) -> None:
    if not (host.startswith("127.") or host == "::1" or remote):
        raise errors.UsageError(
            f"{text} can be reached from other machines, which would reach the guest without a password of ours: "
            "--allow-remote if it is meant so"
        )


class Listener:
    """A listening socket that does not block, with its address; `close` also removes a socket file that it made."""

    def __init__(self, sock: socket.socket, file: "tuple[str, SocketFile] | None" = None) -> None:
        self.sock = sock
        self._file = file and file[1]
        self.address = address_of(sock) if file is None else Address(path=file[0])

    def close(self) -> None:
        """Listen no more."""
        self.sock.close()
        self.remove_file()

    def remove_file(self) -> None:
        """Remove the socket file, unless another process has put its own in its place."""
        if self._file:
            self._file.remove()
            self._file.close()


def address_of(sock: socket.socket) -> Address:
    """The address that a listening socket has."""
    name = sock.getsockname()
    if sock.family == socket.AF_UNIX:
        return Address(path=os.fsdecode(name) or "(unnamed)")
    return Address(name[0], name[1])


def open_listener(address: Address, mode: int = OWNER_ONLY) -> Listener:
    """Listen on `address`; a socket file gets `mode`. Raises `FastvsockError` where that cannot be."""
    try:
        return _open_unix(address.path, mode) if address.path else _open_tcp(address)
    except OSError as error:
        if isinstance(error, errors.FastvsockError):
            raise
        raise errors.FastvsockError(f"cannot listen on {address}: {error.strerror or error}") from None


def _open_tcp(address: Address) -> Listener:
    sock = socket.socket(socket.AF_INET6 if ":" in address.host else socket.AF_INET, socket.SOCK_STREAM)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # a port in TIME_WAIT is free: socket(7)
        if sock.family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        sock.bind((address.host, address.port))
        sock.setblocking(False)
        sock.listen(BACKLOG)
        return Listener(sock)
    except BaseException:
        sock.close()
        raise


def _open_unix(path: str, mode: int) -> Listener:
    file = SocketFile(path)
    try:
        return Listener(file.listen(BACKLOG, mode), (path, file))
    except BaseException:
        file.close()
        raise


def passed(environment: "os._Environ[str]", *, remote: bool = False) -> list[Listener]:
    """The listening sockets that systemd, or what does as it does, passed to this process: sd_listen_fds(3).

    Removes the variables, so that a child does not take them for its own. Raises `FastvsockError`.
    """
    pid, count = environment.pop("LISTEN_PID", ""), environment.pop("LISTEN_FDS", "")
    environment.pop("LISTEN_FDNAMES", None)
    if pid != str(os.getpid()) or not count.isdigit():
        return []
    return [_adopt(fd, remote) for fd in range(FIRST_PASSED, FIRST_PASSED + int(count))]


def _adopt(fd: int, remote: bool) -> Listener:
    try:
        sock = socket.socket(fileno=fd)
        listens = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN)
    except OSError as error:
        raise errors.FastvsockError(f"descriptor {fd} of LISTEN_FDS is no socket: {error.strerror}") from None
    if not listens or sock.type != socket.SOCK_STREAM:
        raise errors.FastvsockError(
            f"descriptor {fd} of LISTEN_FDS is no listening stream socket (Accept=no is needed)"
        )
    if sock.family not in (socket.AF_INET, socket.AF_INET6, socket.AF_UNIX):
        raise errors.FastvsockError(f"descriptor {fd} of LISTEN_FDS is neither a TCP nor a Unix socket")
    sock.set_inheritable(False)
    sock.setblocking(False)  # systemd does no more than poll it: sd_listen_fds(3), NonBlocking= in systemd.service(5)
    listener = Listener(sock)
    if sock.family != socket.AF_UNIX:
        _check_reach(listener.address.host, str(listener.address), remote)
    return listener


class PortFile:
    """A file with the port (or the path of a Unix socket) and a newline: whole from its first moment.

    A regular file at that place is replaced. Anything else, a FIFO or /dev/stdout for instance, is written to as a
    shell's ``>`` does, and stays. A FIFO's reader is waited for, until `give_up` says otherwise.
    """

    def __init__(self, path: str, address: Address, give_up: Callable[[], object] = lambda: False) -> None:
        text = os.fsencode(f"{address.path or address.port}\n")
        self._path = path
        self._made: os.stat_result | None = None
        try:
            if os.path.lexists(path) and not stat.S_ISREG(os.lstat(path).st_mode):
                _write_into(path, text, give_up)
            else:
                self._made = _replace(path, text)
        except OSError as error:
            raise errors.FastvsockError(f"cannot write the port file {path}: {error.strerror}") from None

    def remove(self) -> None:
        """Remove it, if it is a file of ours and no other process has put its own in its place."""
        try:
            if self._made and os.path.samestat(os.lstat(self._path), self._made):
                os.unlink(self._path)
        except OSError:
            pass


def _replace(path: str, text: bytes) -> os.stat_result:
    """Put a new file in the place of `path`, at once; return which one it is."""
    # No pid in the name: in containers the same one comes back, and finds what was left behind by one that was killed.
    draft = os.path.join(os.path.dirname(path), f".fastvsock-{os.urandom(8).hex()}")
    fd = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
    try:
        os.write(fd, text)
        made = os.fstat(fd)
        os.rename(draft, path)
    except BaseException:
        os.unlink(draft)
        raise
    finally:
        os.close(fd)
    return made


def _write_into(path: str, text: bytes, give_up: Callable[[], object]) -> None:
    while True:
        try:
            fd = os.open(path, os.O_WRONLY | os.O_TRUNC | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
            break
        except OSError as error:
            if error.errno != errno.ENXIO or not stat.S_ISFIFO(os.stat(path).st_mode):  # fifo(7): no reader yet
                raise
            if give_up():
                raise InterruptedError(errno.EINTR, "nobody has opened it to read") from None
        sleep(FIFO_PAUSE)
    try:
        os.write(fd, text)
    finally:
        os.close(fd)


def notify(state: str) -> None:
    """Tell the service manager, where there is one: sd_notify(3). A leading @ means an abstract address."""
    address = os.environ.get("NOTIFY_SOCKET", "")
    if address[:1] not in ("/", "@"):
        return
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        try:
            sock.sendto(state.encode(), address.replace("@", "\0", 1) if address[0] == "@" else address)
        except OSError:
            pass  # as sd_notify(3) has it: a service works without


def check_ready(fd: int) -> None:
    """Raise `UsageError` unless a line can be written to `fd`. To be asked before anything of ours is opened."""
    try:
        if fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_ACCMODE != os.O_RDONLY:
            return
    except (OSError, OverflowError, ValueError):
        pass
    raise errors.UsageError(f"--ready-fd {fd}: no descriptor of that number is open for writing")


def tell(fd: int, text: str) -> None:
    """Write a line to the descriptor `fd`, and close it if it is none of the standard three. Raises `UsageError`."""
    try:
        os.write(fd, f"{text}\n".encode(errors="surrogateescape"))
        if fd > 2:
            os.close(fd)
    except BrokenPipeError:
        pass  # nobody waits any more
    except OSError as error:
        if fd == 1 and error.errno == errno.EBADF:
            return  # it was closed: see entry.fill_closed()
        raise errors.UsageError(f"cannot announce the address on descriptor {fd}: {error.strerror}") from None
