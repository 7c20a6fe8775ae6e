"""The guest's side of put and get: a process of its own for each copy, as the user that was asked for.

Users and folders are a process' own, a copy's memory is gone when it ends, and a copy that is cut ends at once. What a
copy needs is loaded in its process, so the agent stays as small as it is.
"""

import _socket
import os
import select

from ..channels.protocol import Request
from ..stdio import close_from
from .work import Agent, Cleanup, RefusedError

TYPE_CHECKING = False
if TYPE_CHECKING:
    import signal as _signal
    from collections.abc import Callable

    from . import users
else:
    import _signal  # signal itself imports enum, and the agent stays in memory

SOCKET = 3  # the only descriptor of a copy's process besides its standard ones


class Copying:
    """Copies to or from the guest, in a child."""

    def __init__(
        self, agent: Agent, sock: _socket.socket, wake: int, stack: Cleanup, was_cut: "Callable[[], bool]"
    ) -> None:
        self._agent, self._sock, self._wake, self._was_cut = agent, sock, wake, was_cut

    def run(self, request: Request) -> None:
        """Start the child, and wait for its end. Raises `RefusedError`."""
        if not request.arguments:
            raise RefusedError("request", 0, b"a copy without a path")
        user = _user(request.user) if request.user else None

        def fork() -> int:
            pid = os.fork()
            if not pid:
                _become(user, self._sock, request, self._agent.engine)
            return pid

        try:
            child = self._agent.children.start(fork, self._wake)
        except OSError as error:
            raise RefusedError("process", error.errno or 0) from None
        poll = select.poll()
        poll.register(self._wake, select.POLLIN)
        while child.status is None:
            poll.poll()
            os.eventfd_read(self._wake)
            if self._was_cut() and child.status is None:
                child.end_session()
        self._agent.children.forget(child)


def _user(name: bytes) -> "users.User":
    from . import users  # few ask for one, and pwd stays in memory

    try:
        return users.find(name, None)
    except users.UnknownNameError as error:
        kind, subject = error.args
        raise RefusedError(kind, 0, subject) from None


def _become(user: "users.User | None", sock: _socket.socket, request: Request, engine: str | None) -> None:
    """In the child: serve the copy. Does not return."""
    try:
        os.setsid()
        _signal.set_wakeup_fd(-1)
        for number in (_signal.SIGCHLD, _signal.SIGTERM, _signal.SIGINT, _signal.SIGHUP):
            _signal.signal(number, _signal.SIG_DFL)
        if sock.fileno() != SOCKET:
            os.dup2(sock.fileno(), SOCKET, inheritable=False)
        close_from(SOCKET + 1)  # the connections of others end when their own processes close them
        os.chdir("/")
        from . import copier

        copier.serve(_socket.socket(fileno=SOCKET), user, request, engine)
    finally:
        os._exit(0)
