"""The emulator against what HYBRID-VSOCK.md says of real VMMs: raw sockets at the host's side, and at the guest's."""

import errno
import fcntl
import os
import queue
import resource
import signal
import socket
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path

import pytest

from fastvsock import emulator as emulator_module
from fastvsock import socketfile
from fastvsock.emulator import DEFAULT_SERVICES, Emulator, EmulatorError, Exec, Service, Tcp, discard
from support import HANG, pattern, started

SOON = 0.3  # seconds in which what must not happen would have happened
GUEST, SHELL, NOBODY = 5000, 5001, 1999
PACKET = 65536


class Guest:
    """A service that leaves the guest's end of each connection to the test."""

    def __init__(self) -> None:
        self._ends: queue.SimpleQueue[socket.socket] = queue.SimpleQueue()

    def __call__(self, guest: socket.socket) -> None:
        end = guest.dup()
        end.settimeout(HANG)
        self._ends.put(end)

    def accept(self) -> socket.socket:
        return self._ends.get(timeout=HANG)

    def close(self) -> None:
        """Close the ends that the test has left behind."""
        while not self._ends.empty():
            self._ends.get().close()


@pytest.fixture
def guest() -> Iterator[Guest]:
    with closing(Guest()) as guest:
        yield guest


@pytest.fixture
def emulator(tmp_path: Path, guest: Guest) -> Iterator[Emulator]:
    services: dict[int, Service] = {**DEFAULT_SERVICES, GUEST: guest, SHELL: Exec(("sh",))}
    with Emulator(tmp_path / "v.sock", services) as emulator:
        yield emulator


@pytest.fixture
def short_deadline(monkeypatch: pytest.MonkeyPatch) -> None:
    """A deadline of 0.2 s for closed connections, so that nobody waits for 2."""
    monkeypatch.setattr(emulator_module, "CLOSE_DEADLINE", 0.2)


def dial(uds: str) -> socket.socket:
    host = socket.socket(socket.AF_UNIX)
    host.settimeout(HANG)
    host.connect(uds)
    return host


def connect(uds: str, port: int) -> socket.socket:
    host = dial(uds)
    host.sendall(b"CONNECT %d\n" % port)
    assert accepted(host), "refused"
    return host


def accepted(host: socket.socket) -> bool:
    """Whether OK comes. Takes the answer off the socket, which else has no word."""
    answer = b""
    try:
        while not answer.endswith(b"\n"):
            byte = host.recv(1)
            if not byte:
                break
            answer += byte
    except ConnectionResetError:
        pass
    assert answer == b"" or (answer[:3] == b"OK " and len(answer) == 14), answer
    return bool(answer)


def drain(sock: socket.socket) -> bytes:
    """All that comes until end of file."""
    parts = []
    while part := sock.recv(1 << 20):
        parts.append(part)
    return b"".join(parts)


def receive(sock: socket.socket, size: int) -> bytes:
    data = b""
    while len(data) < size and (part := sock.recv(size - len(data))):
        data += part
    return data


def is_silent(sock: socket.socket, seconds: float = SOON) -> bool:
    sock.settimeout(seconds)
    try:
        sock.recv(1, socket.MSG_PEEK)
        return False
    except TimeoutError:
        return True
    finally:
        sock.settimeout(HANG)


def queue_size() -> int:
    """Bytes that a Unix socket's queue takes in packets of 64 KiB: 233,152 with 4 KiB pages and Linux' defaults."""
    one, other = socket.socketpair()
    with one, other:
        one.setblocking(False)
        total = 0
        while True:
            try:
                total += one.send(bytes(PACKET))
            except BlockingIOError:
                return total


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + HANG
    while not condition():
        assert time.monotonic() < deadline, "it never happened"
        time.sleep(0.01)


# The handshake


def test_the_answer_is_ok_and_a_port_from_2_to_the_30_up(emulator: Emulator) -> None:
    for n in range(3):
        with dial(emulator.uds) as host:
            host.sendall(b"CONNECT 7\n")
            assert receive(host, 14) == b"OK %d\n" % (2**30 + n)


def test_a_connect_line_a_second_after_connecting_is_accepted(emulator: Emulator) -> None:
    with dial(emulator.uds) as host:
        time.sleep(1)
        host.sendall(b"CONNECT 7\n")
        assert accepted(host)


@pytest.mark.parametrize("cut", [3, 9, 10, 12])
def test_a_connect_line_in_two_writes_is_refused(emulator: Emulator, cut: int) -> None:
    line = b"CONNECT 00007\n"
    with dial(emulator.uds) as host:
        host.sendall(line[:cut])
        time.sleep(0.2)
        with pytest.raises(BrokenPipeError):
            host.sendall(line[cut:])
        assert not accepted(host)


@pytest.mark.parametrize(
    "line",
    [
        b"CONNECT 7\n",
        b"connect 7\n",
        b"cOnNeCt 7\n",
        b"  CONNECT \t  7  \n",
        b"CONNECT 7\r\n",
        b"CONNECT 00007\n",
        b"CONNECT +7\n",
        b"CONNECT 7 and more\n",
        b"CONNECT\n7\n",  # the first nine bytes are not searched for the end of the line
        b"CONNECT 7" + b" " * 23,
    ],
)
def test_an_odd_spelling_that_firecracker_takes_is_accepted(emulator: Emulator, line: bytes) -> None:
    with dial(emulator.uds) as host:
        host.sendall(line + b"x")
        assert accepted(host)
        assert host.recv(10) == b"x"


@pytest.mark.parametrize(
    "line",
    [
        b"CONNECT 4294967296\n",
        b"CONNECT 4294967295\n",
        b"CONNECT -1\n",
        b"CONNECT ++7\n",
        b"CONNECT seven\n",
        b"CONNECT 7x\n",
        b"CONNECT \xd9\xa7\n",  # a digit, but not one of ASCII
        b"CONNECT \xff 7\n",
        b"CONNECT   \n",
        b"LISTEN  7\n",
        b"CONNECT7 7\n",
        b"          \n",
        b"CONNECT" + b" " * 25 + b"7\n",
    ],
)
def test_a_request_that_firecracker_refuses_is_refused(emulator: Emulator, line: bytes) -> None:
    with dial(emulator.uds) as host:
        host.sendall(line)
        assert not accepted(host)


def test_a_line_is_cut_at_32_bytes_and_the_rest_is_payload(emulator: Emulator) -> None:
    with dial(emulator.uds) as host:
        host.sendall(b"CONNECT 7" + b" " * 23 + b"  rest\n")
        assert accepted(host)
        assert receive(host, 7) == b"  rest\n"


def test_payload_behind_the_line_in_the_same_write_is_delivered(emulator: Emulator) -> None:
    payload = pattern(20_008)
    with dial(emulator.uds) as host:
        host.sendall(b"CONNECT 7\n" + payload)
        assert accepted(host)
        assert receive(host, len(payload)) == payload


def test_a_port_where_nobody_listens_is_an_end_of_file_without_a_word(emulator: Emulator) -> None:
    with dial(emulator.uds) as host:
        host.sendall(b"CONNECT %d\n" % NOBODY)
        assert host.recv(100) == b""


def test_a_host_that_connects_and_leaves_does_no_harm(emulator: Emulator) -> None:
    dial(emulator.uds).close()
    connect(emulator.uds, 7).close()


# Closing


def test_a_half_close_of_the_host_closes_both_directions(emulator: Emulator, guest: Guest) -> None:
    with connect(emulator.uds, GUEST) as host, guest.accept() as end:
        host.sendall(b"the last words")
        host.shutdown(socket.SHUT_WR)
        assert drain(end) == b"the last words"
        with pytest.raises(BrokenPipeError):
            end.sendall(b"x")
        assert drain(host) == b""


def test_a_half_close_of_the_host_drops_what_the_guest_had_yet_to_send(emulator: Emulator, guest: Guest) -> None:
    size = 1_000_000
    with connect(emulator.uds, GUEST) as host, guest.accept() as end:
        failures: list[BaseException] = []
        sender = threading.Thread(target=failing, args=(lambda: end.sendall(pattern(size)), failures))
        sender.start()
        until(lambda: len(host.recv(size, socket.MSG_PEEK)) >= PACKET)
        host.shutdown(socket.SHUT_WR)
        sender.join(HANG)
        assert [type(failure) for failure in failures] == [BrokenPipeError]
        got = drain(host)
        assert got == pattern(len(got))
        assert len(got) < size


def failing(act: Callable[[], object], failures: list[BaseException]) -> None:
    try:
        act()
    except OSError as error:
        failures.append(error)


def test_after_a_half_close_the_host_sees_the_end_once_the_guest_has_read_all(emulator: Emulator, guest: Guest) -> None:
    with connect(emulator.uds, GUEST) as host, guest.accept() as end:
        host.sendall(bytes(200_000))
        host.shutdown(socket.SHUT_WR)
        assert is_silent(host)
        assert len(drain(end)) == 200_000
        assert host.recv(1) == b""


def test_the_guest_reads_an_end_and_no_error_though_not_all_that_it_sent_was_taken(
    emulator: Emulator, guest: Guest
) -> None:
    with connect(emulator.uds, GUEST) as host, guest.accept() as end:
        end.sendall(bytes(4 * PACKET + 10_000))  # more than its credit while the host does not read
        until(lambda: len(host.recv(4 * PACKET, socket.MSG_PEEK)) == queue_size())
        host.shutdown(socket.SHUT_WR)
        assert end.recv(1) == b""


def test_a_half_close_of_the_guest_shows_nothing_to_the_host(emulator: Emulator, guest: Guest) -> None:
    with connect(emulator.uds, GUEST) as host, guest.accept() as end:
        end.sendall(b"all I say")
        end.shutdown(socket.SHUT_WR)
        assert receive(host, 9) == b"all I say"
        assert is_silent(host)
        host.sendall(b"all I hear")
        assert receive(end, 10) == b"all I hear"
        end.close()
        assert host.recv(1) == b""


def test_when_the_guest_closes_the_host_reads_what_is_queued_and_the_end(emulator: Emulator, guest: Guest) -> None:
    with connect(emulator.uds, GUEST) as host:
        with guest.accept() as end:
            end.sendall(pattern(100_000))
        assert drain(host) == pattern(100_000)


def test_when_the_host_closes_the_guest_reads_what_was_sent_and_the_end(emulator: Emulator, guest: Guest) -> None:
    with connect(emulator.uds, GUEST) as host:
        host.sendall(pattern(400_000)[:200_000])
    with guest.accept() as end:
        assert drain(end) == pattern(200_000)


def test_when_the_host_is_gone_the_guest_cannot_write(emulator: Emulator, guest: Guest) -> None:
    with guest_of(emulator, guest) as end:
        with pytest.raises(BrokenPipeError):
            end.sendall(bytes(4_000_000))
        assert end.recv(1) == b""


def guest_of(emulator: Emulator, guest: Guest) -> socket.socket:
    """The guest's end of a connection whose host has gone."""
    connect(emulator.uds, GUEST).close()
    return guest.accept()


def test_what_the_guest_did_not_read_before_it_closed_is_no_harm(emulator: Emulator, guest: Guest) -> None:
    with connect(emulator.uds, GUEST) as host, guest.accept() as end:
        host.sendall(b"unread")
        until(lambda: end.recv(9, socket.MSG_PEEK) == b"unread")
        end.sendall(b"but answered")
        end.close()
        assert drain(host) == b"but answered"


# A host that does not read


def stalled(emulator: Emulator, guest: Guest, size: int) -> socket.socket:
    """The host's end of a connection whose guest has written `size` bytes and closed, past the deadline."""
    host = connect(emulator.uds, GUEST)
    with guest.accept() as end:
        end.sendall(pattern(size))
    time.sleep(SOON)
    return host


def dial_nobody(emulator: Emulator) -> None:
    with dial(emulator.uds) as host:
        host.sendall(b"CONNECT %d\n" % NOBODY)
        assert not accepted(host)


def dial_echo(emulator: Emulator) -> None:
    connect(emulator.uds, 7).close()


def dial_from_the_guest(emulator: Emulator) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(f"{emulator.uds}_99")
        listener.listen()
        emulator.connect_to_host(99).close()


def do_nothing(emulator: Emulator) -> None:
    pass


def dial_badly(emulator: Emulator) -> None:
    with dial(emulator.uds) as host:
        host.sendall(b"CONNECT 4294967296\n")
        assert not accepted(host)


@pytest.mark.usefixtures("short_deadline")
@pytest.mark.parametrize("lost", [6_848, 26_848, 28_992])
@pytest.mark.parametrize("event", [dial_echo, dial_nobody, dial_from_the_guest])
def test_the_next_connection_cuts_off_what_was_in_the_vmms_buffer(
    emulator: Emulator, guest: Guest, event: Callable[[Emulator], None], lost: int
) -> None:
    safe = queue_size()
    with stalled(emulator, guest, safe + lost) as host:
        event(emulator)
        assert drain(host) == pattern(safe)


@pytest.mark.usefixtures("short_deadline")
@pytest.mark.parametrize("event", [do_nothing, dial_badly])
def test_without_a_new_connection_nothing_is_lost(
    emulator: Emulator, guest: Guest, event: Callable[[Emulator], None]
) -> None:
    size = queue_size() + 26_848
    with stalled(emulator, guest, size) as host:
        event(emulator)
        assert drain(host) == pattern(size)


def test_a_new_connection_before_the_deadline_cuts_nothing_off(emulator: Emulator, guest: Guest) -> None:
    size = queue_size() + 26_848
    with stalled(emulator, guest, size) as host:
        dial_echo(emulator)
        assert drain(host) == pattern(size)


@pytest.mark.usefixtures("short_deadline")
def test_a_guest_that_had_half_closed_before_has_no_deadline(emulator: Emulator, guest: Guest) -> None:
    size = queue_size() + 26_848
    with connect(emulator.uds, GUEST) as host:
        with guest.accept() as end:
            end.sendall(pattern(size))
            end.shutdown(socket.SHUT_WR)
            time.sleep(SOON)
        time.sleep(SOON)
        dial_echo(emulator)
        assert drain(host) == pattern(size)


@pytest.mark.usefixtures("short_deadline")
def test_a_guest_with_more_than_its_credit_has_not_closed_and_loses_nothing(emulator: Emulator, guest: Guest) -> None:
    size = 4 * PACKET + 1
    with stalled(emulator, guest, size) as host:
        dial_echo(emulator)
        assert drain(host) == pattern(size)


def test_small_writes_to_a_host_that_does_not_read_arrive_in_order(emulator: Emulator, guest: Guest) -> None:
    size = queue_size()
    with connect(emulator.uds, GUEST) as host, guest.accept() as end:
        for start in range(0, size - 1000, 1000):
            end.sendall(pattern(1000, start))
        end.shutdown(socket.SHUT_WR)
        assert receive(host, start + 1000) == pattern(start + 1000)


def test_a_few_bytes_pass_at_once_though_they_are_no_packet(emulator: Emulator, guest: Guest) -> None:
    with connect(emulator.uds, GUEST) as host, guest.accept() as end:
        for size in (1, 40_000, 65_535, 2):
            end.sendall(pattern(size))
            assert receive(host, size) == pattern(size)
            host.sendall(pattern(size))
            assert receive(end, size) == pattern(size)


# A guest that does not read


def test_a_guest_that_does_not_read_stops_the_host_after_327680_bytes(emulator: Emulator, guest: Guest) -> None:
    with connect(emulator.uds, GUEST) as host, guest.accept() as end:
        host.settimeout(SOON)
        total = 0
        try:
            while True:
                total += host.send(pattern(PACKET, total))
        except TimeoutError:
            pass
        # A queue that holds some 64 KiB is not writable for poll(), by which Python waits.
        assert total == 5 * PACKET
        assert receive(end, total) == pattern(total)


def test_a_guest_that_does_not_read_does_not_stop_the_other_direction(emulator: Emulator, guest: Guest) -> None:
    with connect(emulator.uds, GUEST) as host, guest.accept() as end:
        sender = threading.Thread(target=failing, args=(lambda: host.sendall(bytes(2_000_000)), []))
        sender.start()
        for start in range(0, 8_000_000, 100_000):
            end.sendall(pattern(100_000, start))
            assert receive(host, 100_000) == pattern(100_000, start)
        end.close()
        sender.join(HANG)


# How many


def raise_descriptor_limit(least: int) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard < least:
        pytest.skip(f"needs {least} descriptors")
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, least), hard))


def test_1023_connections_work_and_the_next_one_is_refused(emulator: Emulator, guest: Guest) -> None:
    raise_descriptor_limit(5000)
    with ExitStack() as stack:
        hosts = [stack.enter_context(connect(emulator.uds, GUEST)) for _ in range(1023)]
        ends = [stack.enter_context(guest.accept()) for _ in hosts]
        for host in hosts:
            host.sendall(b"still here?")
        for end in ends:  # not in the order of `hosts`: each had a thread to itself
            assert receive(end, 11) == b"still here?"
        assert not tries(emulator)
        hosts[500].close()
        until(lambda: tries(emulator))


def tries(emulator: Emulator) -> bool:
    with dial(emulator.uds) as host:
        try:
            host.sendall(b"CONNECT 7\n")
            return accepted(host)
        except BrokenPipeError:
            return False


# From the guest to the host


def test_the_guest_reaches_the_hosts_socket_without_a_preamble(emulator: Emulator) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(f"{emulator.uds}_5555")
        listener.listen()
        with emulator.connect_to_host(5555) as end:
            host, _ = listener.accept()
            with host:
                end.sendall(b"from the guest")
                assert receive(host, 14) == b"from the guest"
                host.sendall(b"from the host")
                assert receive(end, 13) == b"from the host"


def test_the_guest_gets_a_reset_where_the_host_does_not_listen(emulator: Emulator) -> None:
    with pytest.raises(ConnectionResetError):
        emulator.connect_to_host(5556)


def test_a_child_is_told_where_the_hosts_sockets_are(emulator: Emulator) -> None:
    with connect(emulator.uds, SHELL) as host:
        host.sendall(b'printf %s "$FASTVSOCK_GUEST_BACK"; exit\n')
        assert drain(host).decode() == emulator.uds


# Services


def test_echo_brings_all_back_under_load(emulator: Emulator) -> None:
    payload = pattern(1 << 24)
    with connect(emulator.uds, 7) as host:
        sender = threading.Thread(target=host.sendall, args=(payload,))
        sender.start()
        assert receive_much(host, len(payload)) == payload
        sender.join()


def receive_much(sock: socket.socket, size: int) -> bytes:
    data = bytearray(size)
    view = memoryview(data)
    while view and (count := sock.recv_into(view)):
        view = view[count:]
    return bytes(data)


def test_chargen_sends_the_pattern_past_16_mib_where_it_repeats(emulator: Emulator) -> None:
    size = (1 << 24) + 100_000
    with connect(emulator.uds, 19) as host:
        assert receive_much(host, size) == pattern(size)


def test_discard_counts_but_its_answer_does_not_survive_a_half_close(emulator: Emulator) -> None:
    with connect(emulator.uds, 9) as host:
        host.sendall(bytes(100_000))
        host.shutdown(socket.SHUT_WR)
        assert drain(host) == b""


def test_discard_answers_the_count_where_it_can() -> None:
    host, end = socket.socketpair()
    with host, end:
        counter = threading.Thread(target=discard, args=(end,))
        counter.start()
        host.sendall(bytes(100_000))
        host.shutdown(socket.SHUT_WR)
        assert host.recv(100) == b"100000\n"
        counter.join()


def test_a_childs_stdio_is_the_connection_and_its_exit_the_end(emulator: Emulator) -> None:
    with connect(emulator.uds, SHELL) as host:
        host.sendall(b"echo $((6 * 7)); exit\n")
        assert drain(host) == b"42\n"


def test_each_connection_has_a_child_of_its_own_and_all_are_reaped(emulator: Emulator) -> None:
    numbers = set()
    for _ in range(3):
        with connect(emulator.uds, SHELL) as host:
            host.sendall(b"echo $$; exit\n")
            numbers.add(int(drain(host)))
    assert len(numbers) == 3
    for number in numbers:
        until(lambda number=number: not Path(f"/proc/{number}").exists())  # type: ignore[misc]


def test_a_child_moves_much_in_both_directions(tmp_path: Path) -> None:
    payload = pattern(1 << 24)
    with Emulator(tmp_path / "v.sock", {1: Exec.parse("cat")}) as emulator, connect(emulator.uds, 1) as host:
        sender = threading.Thread(target=host.sendall, args=(payload,))
        sender.start()
        assert receive_much(host, len(payload)) == payload
        sender.join()


def test_a_program_that_cannot_be_run_is_a_guest_that_accepts_and_closes(tmp_path: Path) -> None:
    log: list[str] = []
    services = {1: Exec(("/not/there",))}
    with Emulator(tmp_path / "v.sock", services, log.append) as emulator, connect(emulator.uds, 1) as host:
        assert host.recv(1) == b""
    assert any("cannot start /not/there: No such file" in sentence for sentence in log)


def test_many_hosts_at_once_are_answered_before_the_first_child_is_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    started, answered = threading.Event(), threading.Event()

    def spawn(*arguments: object, **options: object) -> None:
        """Starting a process takes as long as it takes all of the hosts to be answered."""
        started.set()
        assert answered.wait(HANG)
        raise OSError("enough")

    monkeypatch.setattr(subprocess, "Popen", spawn)
    with Emulator(tmp_path / "v.sock", {1: Exec(("cat",))}) as emulator, ExitStack() as stack:
        try:
            hosts = [stack.enter_context(dial(emulator.uds)) for _ in range(emulator_module.ROUNDS // 3)]
            with emulator._lock:  # what comes meanwhile, it finds all at once
                for host in hosts:
                    host.sendall(b"CONNECT 1\n")
            assert all(accepted(host) for host in hosts)
        finally:
            answered.set()
        assert started.wait(HANG)
        assert [host.recv(1) for host in hosts] == [b""] * len(hosts)


def test_busy_connections_do_not_keep_a_child_from_being_started(
    emulator: Emulator, monkeypatch: pytest.MonkeyPatch
) -> None:
    wait = emulator._poller.wait
    monkeypatch.setattr(emulator._poller, "wait", lambda block: wait(block=False) or [(-1, 0)])  # never idle
    with connect(emulator.uds, SHELL) as host:
        host.sendall(b"echo here; exit\n")
        assert drain(host) == b"here\n"


def test_hosts_that_wait_for_their_child_when_the_emulator_ends_see_the_end(tmp_path: Path) -> None:
    emulator = Emulator(tmp_path / "v.sock", {1: Exec(("cat",))})
    emulator.listen()
    before = len(os.listdir("/proc/self/fd"))
    mine, theirs = socket.socketpair()
    emulator._due.append((Exec(("cat",)), theirs, "late"))
    with mine:
        emulator.close()
        assert mine.recv(1) == b""
    assert len(os.listdir("/proc/self/fd")) < before


@pytest.mark.parametrize("script", ["sleep 1000; :", "trap '' TERM; sleep 1000; :"])
def test_children_end_with_the_emulator(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str) -> None:
    monkeypatch.setattr(emulator_module, "PATIENCE", 0.3)
    with (
        Emulator(tmp_path / "v.sock", {1: Exec(("sh", "-c", f"echo $$; {script}"))}) as emulator,
        connect(emulator.uds, 1) as host,
    ):
        number = int(host.recv(100))
        time.sleep(0.1)
    assert not Path(f"/proc/{number}").exists()


def test_a_service_that_fails_closes_its_connection(tmp_path: Path) -> None:
    def fail(guest: socket.socket) -> None:
        raise OSError("as if the disk were full")

    log: list[str] = []
    with Emulator(tmp_path / "v.sock", {1: fail}, log.append) as emulator, connect(emulator.uds, 1) as host:
        assert drain(host) == b""
    assert any("disk were full" in sentence for sentence in log)


@contextmanager
def tcp_behind(folder: Path) -> Iterator[tuple[socket.socket, Emulator]]:
    """A TCP server, and an emulator whose guest has it at port 22."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(HANG)
        with Emulator(folder / "v.sock", {22: Tcp(*server.getsockname())}) as emulator:
            yield server, emulator


def test_a_tcp_port_is_joined_and_its_end_is_a_full_close(tmp_path: Path) -> None:
    with tcp_behind(tmp_path) as (server, emulator), connect(emulator.uds, 22) as host:
        with server.accept()[0] as tcp:
            host.sendall(b"up")
            assert receive(tcp, 2) == b"up"
            tcp.sendall(b"down")
        assert drain(host) == b"down"


def test_a_tcp_port_sees_the_end_of_the_host(tmp_path: Path) -> None:
    with tcp_behind(tmp_path) as (server, emulator):
        with connect(emulator.uds, 22) as host:
            tcp, _ = server.accept()
            host.sendall(b"up")
        with tcp:
            tcp.settimeout(HANG)
            assert drain(tcp) == b"up"


# The socket file


def test_a_stale_socket_is_replaced(tmp_path: Path) -> None:
    uds = str(tmp_path / "v.sock")
    with socket.socket(socket.AF_UNIX) as old:
        old.bind(uds)
        old.listen()
    with Emulator(uds):
        connect(uds, 7).close()
    assert not os.path.exists(uds)


def test_a_live_socket_is_left_alone(tmp_path: Path, emulator: Emulator) -> None:
    with pytest.raises(EmulatorError, match="another process listens on it"):
        Emulator(emulator.uds).start()
    connect(emulator.uds, 7).close()


def test_a_listener_is_left_alone_without_being_connected_to(tmp_path: Path) -> None:
    # One that serves a single connection would have served it.
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "v.sock"))
        listener.listen()
        listener.setblocking(False)
        with pytest.raises(EmulatorError, match="another process listens on it"):
            Emulator(tmp_path / "v.sock").start()
        with pytest.raises(BlockingIOError):
            listener.accept()


@pytest.mark.parametrize("kind", [socket.SOCK_STREAM, socket.SOCK_SEQPACKET, socket.SOCK_DGRAM])
def test_a_socket_of_any_kind_that_somebody_has_open_is_left_alone(tmp_path: Path, kind: socket.SocketKind) -> None:
    path = tmp_path / "v.sock"
    with socket.socket(socket.AF_UNIX, kind) as bound:
        bound.bind(str(path))
        with pytest.raises(EmulatorError, match="another process listens on it"):
            Emulator(path).start()
    assert stat.S_ISSOCK(path.lstat().st_mode)


def test_a_file_that_is_no_socket_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "precious"
    path.write_text("data")
    with pytest.raises(EmulatorError, match="no socket"):
        Emulator(path).start()
    assert path.read_text() == "data"


def test_a_socket_that_has_taken_its_place_is_not_removed(tmp_path: Path) -> None:
    path = tmp_path / "v.sock"
    with Emulator(path):
        path.rename(tmp_path / "moved")  # else the new one might get the old one's inode number
        with socket.socket(socket.AF_UNIX) as other:
            other.bind(str(path))
    assert stat.S_ISSOCK(path.lstat().st_mode)


def test_a_missing_folder_is_told(tmp_path: Path) -> None:
    with pytest.raises(EmulatorError, match="cannot listen there: No such file"):
        Emulator(tmp_path / "not" / "there").start()


def test_a_path_longer_than_a_socket_address_works(tmp_path: Path) -> None:
    folder = tmp_path / ("d" * 120)
    folder.mkdir()
    uds = str(folder / "v.sock")
    with Emulator(uds) as emulator:
        descriptor = os.open(folder, os.O_PATH)
        with closing(connect(f"/proc/self/fd/{descriptor}/v.sock", 7)) as host:
            host.sendall(b"x")
            assert host.recv(1) == b"x"
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(f"/proc/self/fd/{descriptor}/v.sock_5")
            listener.listen()
            emulator.connect_to_host(5).close()
        os.close(descriptor)
    assert not os.path.lexists(uds)


def test_a_closed_emulator_leaves_no_descriptor_behind(tmp_path: Path) -> None:
    before = set(os.listdir("/proc/self/fd"))
    with Emulator(tmp_path / "v.sock", {7: DEFAULT_SERVICES[7], 1: Exec(("cat",))}) as emulator:
        hosts = [connect(emulator.uds, port) for port in (7, 1)] + [dial(emulator.uds)]
        for host in hosts[:2]:
            host.sendall(b"x")
            assert host.recv(1) == b"x"
    for host in hosts:
        assert host.recv(1) == b""
        host.close()
    assert set(os.listdir("/proc/self/fd")) == before


# The command


def command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "fastvsock", "emulate", *arguments]


def ready_line(child: subprocess.Popen[bytes]) -> str:
    assert child.stdout is not None
    return child.stdout.readline().decode()


def failure(*arguments: str) -> tuple[int, str]:
    done = subprocess.run(command(*arguments), capture_output=True, text=True, timeout=HANG, check=False)
    return done.returncode, done.stderr


@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 143), (signal.SIGINT, 130), (signal.SIGHUP, 129)])
def test_the_command_says_when_it_is_ready_and_ends_on_a_signal(tmp_path: Path, number: int, status: int) -> None:
    uds = str(tmp_path / "v.sock")
    with started(command(uds)) as child:
        assert ready_line(child) == f"fastvsock emulate: listening on {uds} (ports 7 echo, 9 discard, 19 chargen)\n"
        with connect(uds, 7) as host:
            child.send_signal(number)
            assert child.wait(HANG) == status
            assert host.recv(1) == b""
        assert child.stderr is not None
        assert child.stderr.read() == b""
    assert not os.path.lexists(uds)


def test_when_its_terminal_goes_the_command_takes_its_children_along(tmp_path: Path) -> None:
    uds = str(tmp_path / "v.sock")
    with started(command(uds, "--exec=1=sh -c 'echo $$; sleep 1000; :'")) as child:
        ready_line(child)
        with connect(uds, 1) as host:
            number = int(host.recv(100))
            child.send_signal(signal.SIGHUP)
            assert child.wait(HANG) == 129
    assert not Path(f"/proc/{number}").exists()


@pytest.mark.parametrize("number", [signal.SIGHUP, signal.SIGINT])
def test_the_command_heeds_no_signal_that_was_ignored_before(tmp_path: Path, number: signal.Signals) -> None:
    uds = str(tmp_path / "v.sock")
    with started(command(uds), preexec_fn=lambda: signal.signal(number, signal.SIG_IGN)) as child:
        ready_line(child)
        child.send_signal(number)
        with connect(uds, 7) as host:
            host.sendall(b"still there?")
            assert receive(host, 12) == b"still there?"
        child.terminate()
        assert child.wait(HANG) == 143


def test_the_commands_options_give_ports_to_services(tmp_path: Path) -> None:
    uds = str(tmp_path / "v.sock")
    with socket.create_server(("127.0.0.1", 0)) as server:
        services = [
            "--echo=1",
            "--discard=2",
            "--chargen=3",
            "--exec=7=echo 'a b'",
            f"--tcp=5=127.0.0.1:{port(server)}",
        ]
        with started(command(uds, *services)) as child:
            names = "1 echo, 2 discard, 3 chargen, 5 tcp, 7 exec, 9 discard, 19 chargen"
            assert ready_line(child) == f"fastvsock emulate: listening on {uds} (ports {names})\n"
            with connect(uds, 7) as host:
                assert drain(host) == b"a b\n"
            with connect(uds, 5), server.accept()[0] as tcp, connect(uds, 1) as host:
                host.sendall(b"x")
                assert host.recv(1) == b"x"
                tcp.close()


def port(server: socket.socket) -> int:
    return int(server.getsockname()[1])


def test_verbose_logs_connections_to_stderr(tmp_path: Path) -> None:
    uds = str(tmp_path / "v.sock")
    with started(command("-v", uds)) as child:
        ready_line(child)
        connect(uds, 7).close()
        assert child.stderr is not None
        assert child.stderr.readline() == b"fastvsock: connection 1073741824 to port 7\n"
        assert child.stderr.readline() == b"fastvsock: connection 1073741824 to port 7 ended\n"


def test_a_socket_in_use_is_a_sentence_and_exit_status_1(emulator: Emulator) -> None:
    status, words = failure(emulator.uds)
    assert status == 1
    assert words.startswith(f"fastvsock: {emulator.uds}: cannot listen there: another process listens on it")
    assert words.count("\n") == 1


@pytest.mark.parametrize(
    ("option", "status"),
    [
        ("--exec=5", 2),
        ("--exec=5=", 2),
        ("--exec=5='", 2),
        ("--exec=5=/not/there", 2),
        ("--tcp=5=22", 2),
        ("--tcp=5=h:x", 2),
        ("--tcp=5=h:65536", 2),
        ("--tcp=5=127.0.0.1:0", 2),
        ("--tcp=5=127.0.0.1:\u0663", 2),
        ("--echo=x", 1),
        ("--what", 2),
    ],
)
def test_a_service_that_makes_no_sense_is_told(tmp_path: Path, option: str, status: int) -> None:
    uds = tmp_path / "v.sock"
    assert failure(str(uds), option)[0] == status
    assert not uds.exists()


@pytest.mark.parametrize(
    "options",
    [
        ["--echo=5", "--discard=5"],
        ["--exec=5=cat", "--tcp=5=127.0.0.1:22"],
        ["--exec=5=cat", "--exec=5=tac"],
        ["--echo=5", "--echo=05"],
    ],
    ids=" ".join,
)
def test_a_port_with_two_services_is_wrong_usage(tmp_path: Path, options: list[str]) -> None:
    uds = tmp_path / "v.sock"
    assert failure(str(uds), *options) == (2, "fastvsock: port 5 is given two services: give it one\n")
    assert not uds.exists()


def test_the_commands_help_tells_its_exit_status() -> None:
    told = subprocess.run(command("--help"), capture_output=True, text=True, timeout=HANG, check=True).stdout
    assert "exit status: " in told
    assert "128+n" in told


@pytest.mark.parametrize(
    ("name", "shown"), [(b"two\nlines", r"two\nlines"), (b"\xff.sock", r"\xff.sock"), (b"\x1b[31m", r"\x1b[31m")]
)
def test_a_path_with_odd_bytes_is_told_on_one_line(tmp_path: Path, name: bytes, shown: str) -> None:
    uds = os.fsencode(tmp_path) + b"/" + name
    with started(command(os.fsdecode(uds))) as child:
        told = f"listening on {tmp_path}/{shown} (ports 7 echo, 9 discard, 19 chargen)\n"
        assert ready_line(child) == f"fastvsock emulate: {told}"
        status, words = failure(os.fsdecode(uds))
    assert status == 1
    assert words.startswith(f"fastvsock: {tmp_path}/{shown}: cannot listen there: another process listens on it")


def test_an_empty_path_is_told(tmp_path: Path) -> None:
    with pytest.raises(EmulatorError, match="the path of the UDS is empty"):
        Emulator("").start()
    assert failure("")[0] == 1


def test_of_several_emulators_that_find_a_stale_socket_one_wins(tmp_path: Path) -> None:
    uds = str(tmp_path / "v.sock")
    with socket.socket(socket.AF_UNIX) as old:
        old.bind(uds)
    emulators = [Emulator(uds) for _ in range(8)]
    failures: list[BaseException] = []
    starters = [threading.Thread(target=failing, args=(emulator.start, failures)) for emulator in emulators]
    for starter in starters:
        starter.start()
    for starter in starters:
        starter.join(HANG)
    connect(uds, 7).close()
    for emulator in emulators:
        emulator.close()
    assert [type(failure) for failure in failures] == [EmulatorError] * 7
    assert not os.path.lexists(uds)


def test_an_emulator_waits_while_another_looks_at_a_stale_socket(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(socketfile, "LOCK_PATIENCE", HANG)
    with socket.socket(socket.AF_UNIX) as stale:
        stale.bind(str(tmp_path / "v.sock"))
    folder = os.open(tmp_path, os.O_RDONLY)
    fcntl.flock(folder, fcntl.LOCK_EX)
    emulator = Emulator(tmp_path / "v.sock")
    starter = threading.Thread(target=emulator.start)
    starter.start()
    starter.join(SOON)
    assert starter.is_alive()
    os.close(folder)
    starter.join(HANG)
    connect(emulator.uds, 7).close()
    emulator.close()


def test_a_folder_that_somebody_keeps_locked_holds_up_neither_the_start_nor_the_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(socketfile, "LOCK_PATIENCE", 0.2)
    with socket.socket(socket.AF_UNIX) as stale:
        stale.bind(str(tmp_path / "stale"))
    folder = os.open(tmp_path, os.O_RDONLY)
    fcntl.flock(folder, fcntl.LOCK_EX)
    with Emulator(tmp_path / "first") as running:
        with pytest.raises(EmulatorError, match="another process keeps its folder locked") as told:
            Emulator(tmp_path / "stale").start()
        assert told.value.errno == errno.EAGAIN
    assert not os.path.lexists(running.uds)
    os.close(folder)


@pytest.mark.parametrize("limit", [40, 41, 42])
def test_out_of_descriptors_it_answers_nobody_until_a_connection_ends(tmp_path: Path, limit: int) -> None:
    uds = str(tmp_path / "v.sock")
    with started(["sh", "-c", f'ulimit -n {limit}; exec "$@"', "sh", *command(uds)]) as child:
        ready_line(child)
        hosts: list[socket.socket] = []
        while len(hosts) < 40:
            hosts.append(dial(uds))
            hosts[-1].sendall(b"CONNECT 9\n")
            if is_silent(hosts[-1], 1.5):
                break
            assert accepted(hosts[-1])
        assert 5 < len(hosts) < 40
        before = processor_time(child.pid)
        assert is_silent(hosts[-1])
        assert processor_time(child.pid) - before < 0.05
        hosts[0].close()
        assert accepted(hosts[-1])
        for host in hosts:
            host.close()


def test_an_idle_emulator_uses_no_processor_time(tmp_path: Path) -> None:
    uds = str(tmp_path / "v.sock")
    with started(command(uds, "--exec=5=sleep 100", "--exec=6=sh -c 'exec >&- <&-'")) as child:
        ready_line(child)
        with connect(uds, 19), connect(uds, 7), connect(uds, 5) as unread, dial(uds):
            unread.settimeout(SOON)
            with pytest.raises(TimeoutError):
                unread.sendall(bytes(1_000_000))
            time.sleep(SOON)
            before = processor_time(child.pid)
            time.sleep(1)
            assert processor_time(child.pid) - before < 0.05


def processor_time(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
