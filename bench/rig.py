"""One measurement of one peer: starts the ends and the peer between them, and subtracts the time stamps of the ends.

The order of events keeps everything but the work out of the figures. The far end, the producers and the consumers
wait for the end of one pipe, which is closed once all connections are made and the peer is at rest: its CPU time
until then is start-up. The time ends with the stamp of the last byte. The far end then keeps the connections open until
the peer's CPU time and memory have been read, so that how the peer ends is not in the figures.
A regular file cannot be held back: there the far end holds back its answer to the handshake instead.
"""

import os
import re
import select
import socket
import subprocess
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from .build_c import program
from .ends import announced_port, shake, tally, work_file
from .measures import EXCHANGES, Measure
from .memory_group import MemoryGroup
from .peers import Peer
from .process_tree import GRACE, Tree
from .sample import PeerError, Sample

PORT = 9
SLOWEST = 20 << 20  # bytes a second; less is a fault


def take(measure: Measure, peer: Peer, check: bool = False) -> Sample:
    """Measure `peer` once. With `check` the bytes are compared by checksum. Raises `PeerError`."""
    with Rig(measure, peer, check) as rig:
        return {"bulk": rig.bulk, "latency": rig.latency, "start": rig.start, "stall": rig.stall}[measure.kind]()


class Rig:
    """The ends of one measurement, with the peer between them."""

    def __init__(self, measure: Measure, peer: Peer, check: bool) -> None:
        self.measure, self.peer, self.check = measure, peer, check
        self.timeout = 10 + measure.moved / SLOWEST
        self._tree = Tree()
        self._ends: list[subprocess.Popen[bytes]] = []
        self._near: list[tuple[int, int]] = []  # the descriptors that the near ends read from and write to
        self._open: set[int] = set()
        self._stack = ExitStack()
        self._group: MemoryGroup | None = None

    def __enter__(self) -> "Rig":
        folder = self._stack.enter_context(tempfile.TemporaryDirectory(prefix="fastvsock-bench-"))
        self.uds = os.path.join(folder, "v.sock")
        self._stderr = os.path.join(folder, "stderr")
        return self

    def __exit__(self, *_: object) -> None:
        for end in self._ends:
            end.kill()
        self._tree.end(grace=0)
        for end in self._ends:
            end.wait()
            for stream in (end.stdout, end.stderr):
                if stream:
                    stream.close()
        self._drop(*self._open)
        self._stack.close()

    def bulk(self) -> Sample:
        """Move the bytes, each way that the measure asks for."""
        share = self.measure.share
        hold, go = self._pipe()
        service = {"up": "sink", "down": "source", "both": "duplex"}[self.measure.way]
        far = self._far_end(service, share, hold)
        self._connect_all()
        producers, consumers = self._start_ends(share, hold)
        for _ in range(self.measure.relays):
            self._expect(far, b"open")
        before = self._tree.settle()
        self._drop(hold, go)
        begin, last = self._await_last_byte(far, producers, consumers, share)
        cpu, memory = self._tree.cpu() - before, self._tree.memory()
        far.terminate()
        for end in producers + consumers:
            end.kill()
            end.wait()
        self._drop(*self._open)
        in_all = self._tree.end(GRACE if self.peer.kind == "stdio" else 0)
        sample = Sample((last - begin) / 1e9, killed=self._tree.killed)
        if self.peer.kind != "none":
            sample.cpu, sample.cpu_in_all, sample.memory = cpu, in_all, memory or None
        return sample

    def latency(self) -> Sample:
        """Exchange small messages with the far end's echo."""
        self._far_end("echo", 0, subprocess.DEVNULL)
        self._connect_all()
        ((reader, writer),) = self._near
        size = self.measure.size
        count = max(EXCHANGES // (1 + size // 16384), 10)
        ping = self._start_end("ping", size, count, stdin=reader, stdout=writer, stderr=subprocess.PIPE)
        word, *values = self._line(ping.stderr).split()
        if word != b"quantiles":
            raise self._fault(f"gave no answer to a message of {size} B within 2 s")
        quantiles = tuple(int(value) / 1e9 for value in values)
        return Sample(quantiles[50], quantiles=quantiles)

    def start(self) -> Sample:
        """From nothing to the first byte of the far end, or to the end of a peer that writes none."""
        if self.peer.kind != "bare":
            self._far_end("source", 1, subprocess.DEVNULL)
        if self.peer.kind == "proxy":
            self._start_proxy()
            self._tree.settle()
        begin = time.monotonic()
        self._connect_all()
        reader, _ = self._near[0]
        if not select.select([reader], [], [], self.timeout)[0] or len(os.read(reader, 1)) != (not self.peer.silent):
            raise self._fault("brought no first byte")
        sample = Sample(time.monotonic() - begin)
        if self.peer.kind != "proxy":
            sample.memory, sample.private, sample.faults = (
                self._tree.memory(),
                self._tree.private(),
                self._tree.faults(),
            )
        return sample

    def stall(self) -> Sample:
        """Fill every buffer on the way to a far end that does not read; then let it read, and count the bytes."""
        try:
            self._group = MemoryGroup()
        except OSError as error:
            raise PeerError(f"no memory cgroup can be made: {error}") from None
        self._stack.callback(self._group.remove)
        share = self.measure.share
        hold, go = self._pipe()
        far = self._far_end("sink", share, hold)
        self._connect_all()
        for _ in range(self.measure.relays):
            self._expect(far, b"open")
        self._tree.settle()
        self._group.add(self._tree.pids())
        resident, charged = self._tree.resident(), self._group.charged()
        producers, consumers = self._start_ends(share, subprocess.DEVNULL)
        self._tree.settle(patience=10, pause=1)
        sample = Sample(
            resident=self._tree.resident() - resident,
            charged=self._group.charged() - charged,
        )
        self._drop(hold, go)
        self._await_last_byte(far, producers, consumers, share)
        return sample

    def _far_end(self, service: str, size: int, stdin: int) -> Any:
        """Start the far end, which reports on its stdout."""
        words = {"plain": self.peer.plain, "check": self.check, "hold": self.measure.ends == "file"}
        count = self.measure.relays
        far = subprocess.Popen(
            [program("farend"), self.uds, service, str(size), str(count), *(word for word in words if words[word])],
            stdin=stdin,
            stdout=subprocess.PIPE,
        )
        self._ends.append(far)
        self._expect(far, b"ready")
        return far

    def _connect_all(self) -> None:
        """Start the peer, or connect through it, once for each relay of the measure."""
        if self.peer.kind == "proxy" and not self._tree.pids():
            self._start_proxy()
        for _ in range(self.measure.relays):
            if self.peer.kind == "proxy":
                self._near.append(self._own(socket.create_connection(self._address, self.timeout)))
            elif self.peer.kind == "none":
                self._near.append(self._own(shake(self.uds, PORT, self.timeout)))
            else:
                self._near.append(self._start_forwarder())

    def _start_forwarder(self) -> tuple[int, int]:
        if self.measure.ends == "socketpair":
            ours, theirs = map(self._own, socket.socketpair())
            reader, far_out, far_in, writer = ours[0], theirs[0], theirs[0], ours[0]
        else:
            reader, far_out = self._pipe()
            far_in, writer = self._pipe()
        if self.measure.ends == "file":
            self._drop(far_in)
            far_in = self._keep(os.open(work_file(self.measure.size)[0], os.O_RDONLY | os.O_CLOEXEC))
        self._start_peer(self._command(), stdin=far_in, stdout=far_out)
        self._drop(far_in, far_out)
        return reader, writer

    def _command(self) -> list[str]:
        return self.peer.command(self.uds, PORT)

    def _start_proxy(self) -> None:
        with socket.create_server(("127.0.0.1", 0), backlog=512) as listener:
            self._address = listener.getsockname()
            if self.peer.listens == "fd":
                command = self.peer.command(self.uds, PORT, listener.fileno())
                self._start_peer(command, stdin=subprocess.DEVNULL, pass_fds=[listener.fileno()])
                return
        command = self.peer.command(self.uds, PORT, self._address[1])
        head = self._start_peer(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE)
        self._stack.callback(head.stdout.close)  # type: ignore[union-attr]
        if self.peer.listens == "announces":
            self._address = "127.0.0.1", announced_port(self._line(head.stdout).decode())
        else:
            self._await_listener(self._address[1])

    def _await_listener(self, port: int) -> None:
        """Wait until a TCP port is listened on, without a connection, which would count as one of the measure's."""
        entry = re.compile(rf":{port:04X} \S+ 0A ")  # TCP_LISTEN: include/net/tcp_states.h
        deadline = time.monotonic() + self.timeout
        while not entry.search(Path("/proc/net/tcp").read_text()):
            if time.monotonic() > deadline:
                raise self._fault("did not listen")
            time.sleep(0.005)

    def _start_peer(self, command: list[str], **options: Any) -> "subprocess.Popen[bytes]":
        with open(self._stderr, "ab") as stderr:
            head = self._tree.start(command, stderr=stderr, **options)
        if self._group:
            self._group.add([head.pid])  # before it accepts: an accepted TCP socket is charged where it was accepted
        return head

    def _fault(self, what: str) -> PeerError:
        """An error with the last line that the peer wrote to stderr."""
        written = Path(self._stderr).read_text(errors="replace").strip() if os.path.exists(self._stderr) else ""
        return PeerError(f"{what}; its last line on stderr: {written.splitlines()[-1]}" if written else what)

    def _start_ends(self, share: int, hold: int) -> tuple[list[Any], list[Any]]:
        """The producers and the consumers that the measure asks for."""
        producers, consumers = [], []
        check = ["check"] * self.check
        for reader, writer in self._near:
            if self.measure.way != "down" and self.measure.ends != "file":
                arguments = "produce", share, self.measure.chunk, *check
                producers.append(self._start_end(*arguments, stdin=hold, stdout=writer, stderr=subprocess.PIPE))
            if self.measure.way != "up":
                consumers.append(self._start_end("consume", share, *check, stdin=reader, stdout=subprocess.PIPE))
        return producers, consumers

    def _start_end(self, *arguments: object, **options: Any) -> "subprocess.Popen[bytes]":
        end = subprocess.Popen([program("ends"), *map(str, arguments)], **options)
        self._ends.append(end)
        return end

    def _await_last_byte(self, far: Any, producers: list[Any], consumers: list[Any], share: int) -> tuple[int, int]:
        """Wait until all bytes have arrived, and count them; return the first and the last moment, in ns."""
        streams = [far.stdout] * self.measure.relays * (2 if self.measure.way == "both" else 1)
        streams += [end.stderr for end in producers] + [end.stdout for end in consumers]
        reported = [tally(self._line(stream)) for stream in streams]
        arrived = [report for report in reported if report.word == b"in"]
        lost = sum(share - report.size for report in arrived)
        if lost:
            raise self._fault(f"lost {lost} of {share * len(arrived)} bytes")
        sums = {report.crc for report in reported}
        if self.measure.ends == "file":
            sums.add(work_file(self.measure.size)[1])
        if self.check and len(sums) != 1:
            raise self._fault("changed the bytes on their way")
        sent = [report for report in reported if report.word == b"out"]
        return min(report.begin for report in sent or arrived), max(report.end for report in arrived)

    def _expect(self, end: Any, word: bytes) -> None:
        if self._line(end.stdout).strip() != word:
            raise self._fault("did not connect")

    def _line(self, stream: Any) -> bytes:
        """The next line of an end, read byte by byte: a buffer would hide lines from select()."""
        line = b""
        while not line.endswith(b"\n"):
            if not select.select([stream], [], [], self.timeout)[0]:
                raise self._fault(f"did not finish within {self.timeout:.0f} s")
            byte = os.read(stream.fileno(), 1)
            if not byte:
                raise self._fault("broke the connection")
            line += byte
        return line

    def _pipe(self) -> tuple[int, int]:
        reader, writer = os.pipe2(os.O_CLOEXEC)
        return self._keep(reader), self._keep(writer)

    def _own(self, sock: socket.socket) -> tuple[int, int]:
        sock.setblocking(True)
        fd = self._keep(sock.detach())
        return fd, fd

    def _keep(self, fd: int) -> int:
        self._open.add(fd)
        return fd

    def _drop(self, *fds: int) -> None:
        for fd in self._open & {*fds}:
            self._open.discard(fd)
            os.close(fd)
