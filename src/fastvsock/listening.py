"""Where a service listens, and how it tells that it does.

An address is ``HOST:PORT``, ``[HOST]:PORT`` or ``unix:PATH``. A port of 0 lets the kernel choose, which alone cannot
collide. Loopback is the rule: an address that other machines reach must be asked for.

A socket file is made under a umask that leaves it to its owner, so it never is anybody else's, not for a moment. A
stale one, which refuses connections, is removed first, a live one never: from the look to the listen(2), the folder is
locked (flock on the folder itself, which leaves nothing behind), so two that start at once cannot take each other's
new socket for a stale one.

listen(2) is what makes the kernel accept, so everything that `announce` does comes after it.
"""

import fcntl
import ipaddress
import os
import socket
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from . import errors
from .handshake import SUN_PATH_MAX

BACKLOG = 4096  # the kernel's own cap, net.core.somaxconn, since Linux 5.4
FIRST_PASSED = 3  # SD_LISTEN_FDS_START of sd_listen_fds(3)
OWNER_ONLY = 0o600


@dataclass(frozen=True)
class Address:
    """A TCP address, or, where `path` is not empty, a Unix socket's."""

    host: str = ""
    port: int = 0
    path: str = ""

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
    try:
        ip = ipaddress.ip_address("127.0.0.1" if host == "localhost" else host)
    except ValueError:
        colon = ""
    if not (colon and digits.isascii() and digits.isdigit() and len(digits) < 6 and int(digits) < 1 << 16):
        raise errors.UsageError(
            f"{text!r} is no address to listen on: give 127.0.0.1:PORT, [::1]:PORT (PORT 0: the kernel chooses) "
            "or unix:PATH"
        )
    _check_reach(ip, text, remote)
    return Address(str(ip), int(digits))


def _check_reach(ip: ipaddress.IPv4Address | ipaddress.IPv6Address, text: str, remote: bool) -> None:
    if not (ip.is_loopback or remote):
        raise errors.UsageError(
            f"{text} can be reached from other machines, which would reach the guest without a password of ours: "
            "--allow-remote if it is meant so"
        )


class Listener:
    """A listening socket that does not block, with its address; `close` also removes a socket file that it made."""

    def __init__(self, sock: socket.socket, file: "tuple[str, os.stat_result] | None" = None) -> None:
        self.sock = sock
        self._file = file
        self.address = address_of(sock) if file is None else Address(path=file[0])

    def close(self) -> None:
        """Listen no more."""
        self.sock.close()
        if self._file is None:
            return
        path, made = self._file
        self._file = None
        try:
            with _locked_folder(path):
                if os.path.samestat(os.lstat(path), made):
                    os.unlink(path)
        except OSError:
            pass  # gone already, or its folder is


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
        return _listen(sock)
    except BaseException:
        sock.close()
        raise


def _open_unix(path: str, mode: int) -> Listener:
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        with _locked_folder(path) as folder:
            _remove_stale(path, folder)
            umask = os.umask(0o777 & ~mode)
            try:
                sock.bind(_short(path, folder))
            finally:
                os.umask(umask)
            return _listen(sock, (path, os.lstat(path)))
    except BaseException:
        sock.close()
        raise


def _listen(sock: socket.socket, file: "tuple[str, os.stat_result] | None" = None) -> Listener:
    sock.setblocking(False)
    sock.listen(BACKLOG)
    return Listener(sock, file)


@contextmanager
def _locked_folder(path: str) -> Iterator[int]:
    folder = os.open(os.path.dirname(path) or ".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(folder, fcntl.LOCK_EX)
        yield folder
    finally:
        os.close(folder)


def _short(path: str, folder: int) -> str:
    """A path to the same place that fits a Unix socket address: unix(7), sun_path."""
    if len(os.fsencode(path)) <= SUN_PATH_MAX:
        return path
    return f"/proc/self/fd/{folder}/{os.path.basename(path)}"


def _remove_stale(path: str, folder: int) -> None:
    """Remove a socket file that nobody listens on. Raises `FastvsockError` for anything else at that place."""
    try:
        if not stat.S_ISSOCK(os.lstat(path).st_mode):
            raise errors.FastvsockError(f"cannot listen on unix:{path}: there is something, and it is no socket")
    except FileNotFoundError:
        return
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.setblocking(False)
        try:
            probe.connect(_short(path, folder))
        except ConnectionRefusedError:
            return os.unlink(path)
        except BlockingIOError:
            pass  # its backlog is full: it lives
        except FileNotFoundError:
            return
    raise errors.FastvsockError(f"cannot listen on unix:{path}: another process listens on it")


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
    sock.set_inheritable(False)
    sock.setblocking(False)  # systemd does no more than poll it: sd_listen_fds(3), NonBlocking= in systemd.service(5)
    listener = Listener(sock)
    if sock.family != socket.AF_UNIX:
        _check_reach(ipaddress.ip_address(listener.address.host.partition("%")[0]), str(listener.address), remote)
    return listener


class PortFile:
    """A file with the port (or the path of a Unix socket) and a newline: whole from its first moment."""

    def __init__(self, path: str, address: Address) -> None:
        text = address.path or str(address.port)
        draft = os.path.join(os.path.dirname(path), f".{os.path.basename(path)}.{os.getpid()}")
        try:
            with open(draft, "x") as file:
                file.write(f"{text}\n")
            self._made = os.stat(draft)
            os.rename(draft, path)
        except OSError as error:
            raise errors.FastvsockError(f"cannot write the port file {path}: {error.strerror}") from None
        self._path = path

    def remove(self) -> None:
        """Remove it, unless another process has put its own in its place."""
        try:
            if os.path.samestat(os.stat(self._path), self._made):
                os.unlink(self._path)
        except OSError:
            pass


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


def tell(fd: int, text: str) -> None:
    """Write a line to the descriptor `fd`, and close it if it is none of the standard three. Raises `UsageError`."""
    try:
        os.write(fd, f"{text}\n".encode(errors="surrogateescape"))
        if fd > 2:
            os.close(fd)
    except BrokenPipeError:
        pass  # nobody waits any more
    except OSError as error:
        raise errors.UsageError(f"cannot announce the address on descriptor {fd}: {error.strerror}") from None
