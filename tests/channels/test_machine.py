"""A client and an agent, with everything between them at the mercy of hypothesis: pieces, pauses, stalls, any order."""

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from fastvsock.channels import protocol
from fastvsock.engines import frames
from fastvsock.engines.frames import Frames

STREAMS = (protocol.STDIN, protocol.STDOUT, protocol.STDERR)
OUTGOING = {"client": (protocol.STDIN,), "agent": (protocol.STDOUT, protocol.STDERR)}
OTHER = {"client": "agent", "agent": "client"}


class Side:
    """One end: its books, what it has sent and got, and what its readers have yet to take."""

    def __init__(self, name: str) -> None:
        self.books = Frames(incoming=OUTGOING[OTHER[name]], outgoing=OUTGOING[name])
        self.wire = bytearray()  # on its way to the other side
        self.sent = {stream: bytearray() for stream in OUTGOING[name]}
        self.got = {stream: bytearray() for stream in OUTGOING[OTHER[name]]}
        self.undelivered = dict.fromkeys(OUTGOING[OTHER[name]], 0)
        self.ends: list[int] = []
        self.messages: list[tuple[int, object]] = []


class Channel(RuleBasedStateMachine):
    """What went in comes out, ends are said once, and credit is never exceeded: `Frames.receive` checks the last."""

    def __init__(self) -> None:
        super().__init__()
        self.sides = {name: Side(name) for name in OTHER}
        self.client, self.server = protocol.Client(), protocol.Server()
        self.sides["agent"].wire += protocol.started()

    def owner(self, stream: int) -> Side:
        return self.sides["client" if stream == protocol.STDIN else "agent"]

    def reader(self, stream: int) -> Side:
        return self.sides["agent" if stream == protocol.STDIN else "client"]

    @rule(stream=st.sampled_from(STREAMS), size=st.sampled_from([1, 2, 4096, 65535, 65536, 65537, 1 << 20]))
    def send(self, stream: int, size: int) -> None:
        side = self.owner(stream)
        books = side.books.outgoing[stream]
        size = min(size, books.credit)
        if size and not books.ended:
            data = bytes([len(side.sent[stream]) % 251]) * size
            books.send(size)
            side.sent[stream] += data
            side.wire += frames.frame(frames.DATA, stream, data)

    @rule(stream=st.sampled_from(STREAMS))
    def end(self, stream: int) -> None:
        side = self.owner(stream)
        books = side.books.outgoing[stream]
        if not books.ended:
            books.ended = True
            side.wire += frames.end_frame(stream, books.count)

    @rule(name=st.sampled_from(sorted(OTHER)), size=st.sampled_from([1, 7, 8, 9, 1000, 65536, 1 << 21]))
    def carry(self, name: str, size: int) -> None:
        source, target = self.sides[name], self.sides[OTHER[name]]
        piece = bytes(source.wire[:size])
        del source.wire[:size]
        for kind, stream, value in target.books.receive(memoryview(piece)):
            if kind == frames.DATA:
                assert isinstance(value, memoryview)
                target.got[stream] += value
                target.undelivered[stream] += len(value)
            elif kind == frames.END:
                target.ends.append(stream)
            elif kind >= frames.MESSAGES:
                assert isinstance(value, bytes)
                self.take(name, kind, value)

    def take(self, sender: str, kind: int, payload: bytes) -> None:
        if sender == "agent":
            self.client.receive(kind, payload)
        else:
            self.sides["agent"].messages.append(self.server.receive(kind, payload))
            if kind == protocol.SIGNAL:
                self.sides["agent"].wire += protocol.signalled()

    @rule(stream=st.sampled_from(STREAMS), size=st.sampled_from([1, 4096, 65536, 1 << 20]))
    def deliver(self, stream: int, size: int) -> None:
        side = self.reader(stream)
        size = min(size, side.undelivered[stream])
        side.undelivered[stream] -= size
        grant = side.books.incoming[stream].deliver(size) if size else 0
        if grant:
            side.wire += frames.credit_frame(stream, grant)

    @rule(number=st.sampled_from([1, 2, 15, 28]))
    def signal(self, number: int) -> None:
        if not self.server.is_done:
            self.sides["client"].wire += protocol.signal(number)
            self.client.signals.append(0.0)

    @precondition(lambda self: not self.server.has_exited)
    @rule(status=st.integers(-64, 255))
    def exit(self, status: int) -> None:
        for stream in OUTGOING["agent"]:
            self.end(stream)
        self.sides["agent"].wire += protocol.exited(status)
        self.server.has_exited = True
        self.status = status

    @invariant()
    def what_came_is_what_was_sent(self) -> None:
        for stream in STREAMS:
            got, sent = self.reader(stream).got[stream], self.owner(stream).sent[stream]
            assert sent.startswith(got)
            incoming = self.reader(stream).books.incoming[stream]
            assert 0 <= incoming.held <= frames.WINDOW_MAX
            assert incoming.room + incoming.held <= frames.WINDOW_MAX

    def teardown(self) -> None:
        """Whatever happened, it can still be brought to a good end."""
        for stream in STREAMS:
            self.end(stream)
        if not self.server.has_exited:
            self.exit(7)
        while any(side.wire for side in self.sides.values()):
            for name in OTHER:
                self.carry(name, 1 << 20)
            for stream in STREAMS:
                self.deliver(stream, 1 << 20)
        for stream in STREAMS:
            assert self.reader(stream).got[stream] == self.owner(stream).sent[stream]
            assert self.reader(stream).ends.count(stream) == 1
        assert self.client.status == self.status
        assert not self.client.signals


Channel.TestCase.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
TestChannel = Channel.TestCase


def test_what_an_agent_says_becomes_a_dictionary_only_where_it_is_asked_for() -> None:
    client = protocol.Client()
    client.receive(protocol.STARTED, protocol.started([b"name=value", b"other=1=2"])[frames.HEADER :])
    assert not [value for value in vars(client).values() if isinstance(value, dict)]
    assert client.properties == {"name": "value", "other": "1=2"}
