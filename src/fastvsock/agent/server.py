"""The agent's process: one thread accepts, and each channel has one of its own. At rest nothing wakes up.

The main thread sleeps in poll(2) until a connection, or a signal, is there. What runs short of descriptors, threads or
memory is waited for; a connection that cannot be served is closed, and the next may fare better.
"""

import _socket
import _thread
import os
import resource
import select
from time import monotonic

from .. import errors
from ..stdio import log
from .work import Agent, EndedError

TYPE_CHECKING = False
if TYPE_CHECKING:
    import signal as _signal
    from collections.abc import Callable, Mapping
else:
    import _signal  # signal itself imports enum, and the agent stays in memory

HOST = 2  # VMADDR_CID_HOST
LOCAL = 1  # VMADDR_CID_LOCAL: for nothing but a policy that names it
PAUSE = 1.0  # seconds after a shortage
STACK = 1 << 18  # bytes; the default of 8 MiB is address space that some guests do not have a hundred times
MAX_CHANNELS = 1023  # as many connections as a VMM has: Firecracker's vsock/unix/mod.rs
ENDING = (_signal.SIGTERM, _signal.SIGINT, _signal.SIGHUP)


def open_vsock(port: int) -> _socket.socket:
    """Listen on an AF_VSOCK port. Raises `FastvsockError`."""
    try:
        sock = _socket.socket(_socket.AF_VSOCK, _socket.SOCK_STREAM)
        try:
            sock.setsockopt(_socket.SOL_SOCKET, _socket.SO_REUSEADDR, 1)
            sock.bind((_socket.VMADDR_CID_ANY, port))
            sock.listen(128)
            sock.setblocking(False)
        except BaseException:
            sock.close()
            raise
        return sock
    except OSError as error:
        raise errors.FastvsockError(
            f"cannot listen on vsock port {port}: {error.strerror or error} (below 1024 only root may, and the guest's "
            "kernel needs CONFIG_VIRTIO_VSOCKETS)"
        ) from None


def prepare_process() -> tuple[int, int]:
    """Raise the limit of descriptors, and keep what was inherited from commands; the limit as it was, for those."""
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (before[1], before[1]))
    try:
        names = os.listdir("/proc/self/fd")
    except OSError:
        return before
    for fd in map(int, names):
        try:
            if fd > 2:
                os.set_inheritable(fd, False)
        except OSError:
            pass  # it was open for reading the folder
    return before


class Server:
    """Serves connections from peers whose CID is one of `cids`, until a signal ends it.

    `listeners` are sockets that do not block, each with what serves one of its connections.
    """

    def __init__(
        self,
        agent: Agent,
        listeners: "Mapping[_socket.socket, Callable[[_socket.socket], object]]",
        cids: frozenset[int],
    ) -> None:
        self._agent, self._listeners, self._cids = agent, listeners, cids
        self._open = 0
        self._lock = _thread.allocate_lock()
        self._signal = 0
        self._woken, self._wakeup = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        _signal.set_wakeup_fd(self._wakeup, warn_on_full_buffer=False)
        _signal.pthread_sigmask(_signal.SIG_SETMASK, ())  # commands inherit it
        _signal.signal(_signal.SIGCHLD, lambda number, frame: None)
        for number in ENDING:
            if _signal.getsignal(number) != _signal.SIG_IGN:  # nohup, and a shell's background jobs, mean it so
                _signal.signal(number, self._end)

    def _end(self, number: int, frame: object) -> None:
        self._signal = number

    def run(self) -> int:
        """Accept until a signal comes, end what is open, and return 128 plus the signal's number."""
        _thread.stack_size(STACK)
        paused_until = 0.0
        while not self._signal:
            pause = paused_until - monotonic()
            accepting = pause <= 0 and self._open < MAX_CHANNELS
            ready = self._wait(accepting, pause)
            for listener in self._listeners if accepting else ():
                if listener.fileno() in ready and not self._accept(listener):
                    paused_until = monotonic() + PAUSE
        self._agent.cut()
        while self._open:
            self._wait(False, 0)
        return 128 + self._signal

    def _wait(self, accepting: bool, pause: float) -> list[int]:
        """Until something has happened, or for `pause` seconds where that is more than 0: the descriptors."""
        poll = select.poll()
        poll.register(self._woken, select.POLLIN)
        for listener in self._listeners if accepting else ():
            poll.register(listener, select.POLLIN)
        ready = [fd for fd, _ in poll.poll(pause * 1000 if pause > 0 else None)]
        if self._woken in ready:
            os.read(self._woken, 4096)
            self._agent.children.look()
        return ready

    def _accept(self, listener: _socket.socket) -> bool:
        """Take one connection and start its thread. False where something is short."""
        try:
            fd, address = listener._accept()  # type: ignore[attr-defined]  # `socket`, which has accept(), imports enum
        except (BlockingIOError, ConnectionAbortedError):
            return True
        except OSError as error:
            log(f"cannot accept a connection: {error.strerror}; trying again in {PAUSE:g} s")
            return False
        sock = _socket.socket(fileno=fd)
        if sock.family == _socket.AF_VSOCK and address[0] not in self._cids:
            sock.close()
            log(f"refused a connection of CID {address[0]}: only {', '.join(map(str, sorted(self._cids)))} may")
            return True
        with self._lock:
            self._open += 1
        try:
            _thread.start_new_thread(self._serve, (self._listeners[listener], sock))
        except (RuntimeError, MemoryError) as error:
            sock.close()
            self._ended()
            log(f"cannot serve a connection: {error}; it was closed")
            return False
        return True

    def _serve(self, serve: "Callable[[_socket.socket], object]", sock: _socket.socket) -> None:
        try:
            serve(sock)
        except (EndedError, errors.FastvsockError) as error:
            if str(error):
                log(str(error))
        except Exception as error:
            if os.environ.get("FASTVSOCK_DEBUG") == "1":
                raise
            log(f"unexpected {type(error).__name__} in a channel: {error}")
        finally:
            self._ended()

    def _ended(self) -> None:
        with self._lock:
            self._open -= 1
        try:
            os.write(self._wakeup, b"\0")
        except BlockingIOError:
            pass  # full, and so readable
