"""The host's side of a copy: asks the guest's agent for it, and is its sender or its receiver."""

import errno
import os
from time import monotonic

from .. import errors, handshake
from ..channels import protocol
from ..channels.protocol import Request
from ..engines import choose
from ..relaying import raise_send_buffer
from .options import Options
from .report import Report
from .walk import split_source
from .wire import BrokenWire, Wire, unexpected

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from .send import Sender
    from .tree import Tree


class Copy:
    """A copy between this host and the guest behind `uds`, with the parameters of `fastvsock.connect`.

    `user` is who the agent is in the guest. Raises what `channels.client.Channel` does.
    """

    def __init__(
        self,
        uds: "handshake.Path",
        options: Options,
        report: Report,
        *,
        user: str = "",
        port: int = protocol.PORT,
        timeout: float | None = 10.0,
        wait: float = 0.0,
        engine: str | None = None,
    ) -> None:
        self._uds, self._options, self._report, self._user = uds, options, report, os.fsencode(user)
        self._port, self._timeout, self._wait = port, timeout, wait
        self.native = choose(engine) == "splice"
        self.wire: Wire | None = None
        self._order = protocol.Client()
        self._abandoned = False
        self._deadline = 0.0  # for the agent's first answer

    def _ask(self, operation: int, paths: "Sequence[bytes]") -> Wire:
        """Connect, and ask the agent to begin, which takes it a moment: `_await_start` is for its answer."""
        request = Request(operation, arguments=paths, variables=self._options.encode(), user=self._user)
        frame = request.encode()
        limit = handshake.limit(self._timeout)
        sock = handshake.connect(self._uds, self._port, self._timeout, self._wait)
        raise_send_buffer(sock)
        self.wire = wire = Wire(sock, splices=self.native)
        if self._abandoned:
            wire.cut()
        self._deadline = monotonic() + limit
        wire.put(frame)
        try:
            wire.flush()
        except BrokenWire as broken:
            raise _unstarted(broken) from None
        return wire

    def _await_start(self, wire: Wire) -> None:
        """Raises `StartError` where the agent cannot begin."""
        try:
            kind, payload = wire.next(max(self._deadline - monotonic(), 0))
        except TimeoutError:
            raise errors.AgentTimeoutError(handshake.limit(self._timeout)) from None
        except BrokenWire as broken:
            raise _unstarted(broken) from None
        if isinstance(payload, int):
            raise unexpected(kind, payload)
        self._order.receive(kind, payload)

    def put(self, sources: "Sequence[bytes]", target: bytes) -> None:
        """Copy paths of this host to `target` in the guest. What fails is reported, by name."""
        names = [split_source(source)[1] for source in sources]
        self.send([target, *names], lambda sender: sender.run(sources, sources))

    def send(self, paths: "Sequence[bytes]", act: "Callable[[Sender], None]") -> None:
        """Copy what `act` sends to the guest: `paths` are the target, and the names of the sources in it."""
        wire = self._ask(protocol.PUT, paths)
        from .send import Sender  # while the agent prepares

        self._await_start(wire)
        try:
            sender = Sender(wire, self._options, self._report, native=self.native)
            act(sender)
            kind, payload = sender.answers.wait_for_end()
            self._end(wire, kind, payload)
        except BrokenWire as broken:
            raise self._broken(wire, broken) from None
        if self._order.status and not sender.answers.failures:  # what cannot be an entry's
            raise errors.StreamError("the guest's disk has not taken all of it", errno.EIO)

    def get(self, sources: "Sequence[bytes]", target: bytes) -> None:
        """Copy paths of the guest to `target` on this host. What fails is reported, by name.

        Raises `StreamError` where the target cannot be used.
        """
        from .target import Target, TargetFault
        from .tree import Rehearsal, Tree

        names = [split_source(source)[1] or None for source in sources]
        try:
            place = Target(target, names)
        except TargetFault as fault:
            number, path = fault.args
            shown = errors.printable(os.fsdecode(path))
            raise errors.StreamError(f"cannot copy to {shown}: {os.strerror(number)}", number) from None
        try:
            tree = (Rehearsal if self._options.dry_run else Tree)(place, self._options, native=self.native)
            self.receive(tree, sources)
        finally:
            place.close()

    def receive(self, tree: "Tree", sources: "Sequence[bytes]") -> None:
        """Copy paths of the guest to `tree`."""
        wire = self._ask(protocol.GET, sources)
        from .receive import Receiver  # while the agent prepares

        self._await_start(wire)
        try:
            labels = [b":" + source for source in sources]
            Receiver(wire, tree, self._options, self._report, labels).run()
            kind, payload = wire.next()
            if isinstance(payload, int):
                raise unexpected(kind, payload)
            self._end(wire, kind, payload)
        except BrokenWire as broken:
            raise self._broken(wire, broken) from None

    def _end(self, wire: Wire, kind: int, payload: bytes) -> None:
        """The agent has had its last word: have ours."""
        self._order.receive(kind, payload)
        wire.put(protocol.done())
        try:
            wire.flush()
        except BrokenWire:
            pass  # everything is there

    def _broken(self, wire: Wire, broken: BrokenWire) -> errors.ChannelBrokenError:
        return errors.ChannelBrokenError(f"{wire.sent} bytes up and {wire.received} down", broken.args[0])

    def abandon(self) -> None:
        """Cut the connection, from another thread: the copy raises `ChannelBrokenError`."""
        self._abandoned = True
        if self.wire:
            self.wire.cut()

    def close(self) -> None:
        """Close the connection, which ends the copy if it has not ended."""
        if self.wire:
            self.wire.close()


def _unstarted(broken: BrokenWire) -> errors.ChannelBrokenError:
    return errors.ChannelBrokenError("connecting and before its first answer", broken.args[0])
