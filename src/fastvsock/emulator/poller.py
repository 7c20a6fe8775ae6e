"""epoll, with a handler for each descriptor."""

import select
from collections.abc import Callable

from .guest import PACKET


class Poller:
    """epoll, with a handler for each descriptor; the kernel is only called for changes.

    `buffer` is room for one packet. A handler may use it until it returns.
    """

    def __init__(self) -> None:
        self.buffer = memoryview(bytearray(PACKET))
        self._epoll = select.epoll()
        self._watched: dict[int, tuple[int, Callable[[int], None]]] = {}

    def watch(self, fd: int, mask: int, handler: Callable[[int], None]) -> None:
        """Call `handler` with the events of `mask`. epoll adds HUP and ERR to any mask, 0 included."""
        known = self._watched.get(fd)
        if known is None:
            self._epoll.register(fd, mask)
        elif known[0] != mask:
            self._epoll.modify(fd, mask)
        self._watched[fd] = mask, handler

    def forget(self, fd: int) -> None:
        """Stop watching a descriptor. Harmless for one that is not watched."""
        if self._watched.pop(fd, None):
            self._epoll.unregister(fd)

    def wait(self, block: bool) -> list[tuple[int, int]]:
        """Descriptors with their events. Without `block`, those that are ready now, which may be none."""
        return self._epoll.poll(None if block else 0)

    def dispatch(self, fd: int, events: int) -> None:
        """Call the handler, unless an earlier handler of the same round has stopped watching the descriptor."""
        watched = self._watched.get(fd)
        if watched:
            watched[1](events)

    def close(self) -> None:
        """Close the epoll descriptor."""
        self._epoll.close()
