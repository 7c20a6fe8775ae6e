"""epoll, with a handler for each descriptor."""

import select
from collections.abc import Callable

from ..errors import EmulatorError as EmulatorError
from .guest import PACKET


class Poller:
    """epoll, with a handler for each descriptor; only changes reach the kernel.

    `buffer` is a packet's room, any handler's for as long as it runs.
    """

    def __init__(self) -> None:
        self.buffer = memoryview(bytearray(PACKET))
        self._epoll = select.epoll()
        self._watched: dict[int, tuple[int, Callable[[int], None]]] = {}

    def watch(self, fd: int, mask: int | None, handler: Callable[[int], None]) -> None:
        """Call `handler` with the events of `mask` (epoll adds HUP and ERR to any). None stops watching."""
        known = self._watched.get(fd)
        if mask is None:
            if known:
                del self._watched[fd]
                self._epoll.unregister(fd)
            return
        if known is None:
            self._epoll.register(fd, mask)
        elif known[0] != mask:
            self._epoll.modify(fd, mask)
        self._watched[fd] = mask, handler

    def wait(self, block: bool) -> list[tuple[int, int]]:
        """Descriptors with their events; blocks until there are some, or not at all."""
        return self._epoll.poll(None if block else 0)

    def dispatch(self, fd: int, events: int) -> None:
        """Call the handler, unless an earlier one of the same round has put an end to the descriptor."""
        watched = self._watched.get(fd)
        if watched:
            watched[1](events)

    def close(self) -> None:
        self._epoll.close()
