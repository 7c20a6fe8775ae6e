"""`fastvsock agent`: many channels, hostile clients, shortages, and rest."""

import fcntl
import os
import random
import re
import resource
import signal
import socket
import subprocess
import termios
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

import fastvsock
from fastvsock.channels import protocol
from fastvsock.channels.protocol import EXEC, Request
from fastvsock.engines import frames, has_closed
from support import HANG, descriptors, started
from support.bad_frames import BAD
from support.channels import LIBC_SIGNALS, Guest, Peer, agent_on, ask, dial_agent, exec_in, umbrella, within
from support.services import receive


def threads_of(guest: Guest) -> int:
    return len(os.listdir(f"/proc/{guest.agent.pid}/task"))


def children_of(guest: Guest) -> str:
    return "".join(path.read_text() for path in Path(f"/proc/{guest.agent.pid}/task").glob("*/children"))


def kilobytes(guest: Guest) -> int:
    """Memory that is the agent's alone."""
    found = re.search(r"Private_Dirty: +(\d+) kB", Path(f"/proc/{guest.agent.pid}/smaps_rollup").read_text())
    assert found
    return int(found[1])


def is_at_rest(guest: Guest) -> Callable[[], bool]:
    """Whether it has one thread, no children, and the descriptors that it had then before."""
    assert within(HANG, lambda: (threads_of(guest), children_of(guest)) == (1, ""))
    before = len(descriptors(guest.agent.pid))
    return lambda: (len(descriptors(guest.agent.pid)), threads_of(guest), children_of(guest)) == (before, 1, "")


def run_by_hand(guest: Guest, *arguments: bytes) -> tuple[bytes, int]:
    """stdout and the exit status of a command, without a client."""
    peer = ask(guest, *arguments)
    with peer.sock:
        out = b""
        while True:
            kind, stream, payload = peer.receive()
            if kind == frames.DATA and stream == protocol.STDOUT:
                out += payload
            elif kind == protocol.EXIT:
                peer.send(protocol.DONE)
                return out, payload[0]


def drain(peer: Peer) -> None:
    """Receive until the other end closes, which raises."""
    while True:
        peer.receive()


def test_two_hundred_channels_at_the_same_time(guest: Guest) -> None:
    is_again = is_at_rest(guest)
    peers = [ask(guest, b"/bin/cat", flags=protocol.WITH_STDIN) for _ in range(200)]
    data = os.urandom(60_000)
    failures: list[BaseException] = []

    def use(peer: Peer) -> None:
        try:
            with peer.sock:
                peer.send(frames.DATA, protocol.STDIN, data)
                peer.sock.sendall(frames.end_frame(protocol.STDIN, len(data)))
                back = b""
                while (frame := peer.receive())[0] != protocol.EXIT:
                    back += frame[2] if frame[:2] == (frames.DATA, protocol.STDOUT) else b""
                assert back == data
        except BaseException as failure:
            failures.append(failure)

    users = [threading.Thread(target=use, args=(peer,)) for peer in peers]
    for user in users:
        user.start()
    for user in users:
        user.join(HANG)
    assert not failures
    assert within(HANG, is_again)


@pytest.mark.parametrize("name", [name for name in BAD if name not in ("wrong way", "credit for what it sends")])
def test_frames_that_break_the_rules_end_the_channel(guest: Guest, name: str) -> None:
    """Stream 1 of the examples is the agent's own, so they are refused one way or another."""
    is_again = is_at_rest(guest)
    peer = ask(guest, b"/bin/sleep", b"1000", flags=protocol.WITH_STDIN)
    with peer.sock:
        peer.sock.sendall(BAD[name][0])
        with pytest.raises((EOFError, ConnectionError)):
            drain(peer)
    assert within(HANG, is_again)


@pytest.mark.parametrize(
    "request_bytes",
    [
        b"GET / HTTP/1.1\r\nHost: guest\r\n\r\n",
        frames.header(protocol.REQUEST, 0, 0xFFFFFFFF),
        frames.header(protocol.REQUEST, 0, protocol.MAX_REQUEST + 1),
        frames.frame(protocol.REQUEST, 0, b""),
        frames.frame(protocol.REQUEST, 0, b"\0\1"),
        frames.frame(protocol.REQUEST, 1, b"\0\1\1"),
        frames.frame(protocol.REQUEST, 0, b"\0\1\1"),
        frames.frame(protocol.REQUEST, 0, b"\0\1\x63"),
        frames.frame(protocol.REQUEST, 0, b"\0\1\1\1\xff\xff\xff\xffx"),
        frames.frame(protocol.REQUEST, 0, b"\0\1\1\1\0\0\0\3a\0b"),
        frames.frame(protocol.REQUEST, 0, b"\0\1\2\x08\0\0\0\5tcp:x"),
        frames.frame(protocol.REQUEST, 0, b"\0\1\2"),
    ],
)
def test_a_request_that_is_none_is_refused(guest: Guest, request_bytes: bytes) -> None:
    is_again = is_at_rest(guest)
    peer = dial_agent(guest)
    with peer.sock:
        peer.sock.sendall(request_bytes)
        kind, _, payload = peer.receive()
        assert (kind, payload[0]) == (protocol.FAILED, protocol.KINDS.index("request"))
    assert within(HANG, is_again)


def test_an_unknown_field_is_ignored(guest: Guest) -> None:
    peer = dial_agent(guest)
    frame = Request(EXEC, arguments=[b"/bin/true"]).encode()
    with peer.sock:
        peer.send(protocol.REQUEST, 0, frame[frames.HEADER :] + b"\xc8\0\0\0\3new")
        assert peer.receive()[0] == protocol.STARTED


def test_garbage_after_garbage_does_no_harm(guest: Guest) -> None:
    is_again = is_at_rest(guest)
    chance = random.Random(721)
    request = Request(EXEC, arguments=[b"/bin/cat"], flags=protocol.WITH_STDIN).encode()
    for _ in range(200):
        data = bytearray(request + frames.frame(frames.DATA, 0, b"bytes") + protocol.signal(1) + frames.end_frame(0, 5))
        for _ in range(chance.randrange(4)):
            data[chance.randrange(len(data))] = chance.randrange(256)
        peer = dial_agent(guest)
        with peer.sock:
            peer.sock.sendall(data[: chance.randrange(len(data) + 1)])
            if chance.random() < 0.5:
                peer.sock.shutdown(socket.SHUT_WR)
                peer.sock.settimeout(0.05)
                try:
                    while peer.sock.recv(65536):
                        pass
                except OSError:
                    pass
    assert run_by_hand(guest, b"/bin/echo", b"well") == (b"well\n", 0)
    assert within(HANG, is_again)


def test_a_client_that_says_nothing_holds_up_nobody(guest: Guest) -> None:
    peers = [dial_agent(guest) for _ in range(50)]
    assert run_by_hand(guest, b"/bin/echo", b"well") == (b"well\n", 0)
    for peer in peers:
        peer.sock.close()


def test_memory_does_not_grow_with_what_a_client_says(engine: str, tmp_path: Path) -> None:
    with agent_on(tmp_path / "agent.sock", engine=engine) as guest:
        run_by_hand(guest, b"/bin/true")
        before = kilobytes(guest)
        peers = []
        for _ in range(20):
            peer = ask(guest, b"/bin/sleep", b"1000", flags=protocol.WITH_STDIN)
            peer.send(frames.DATA, protocol.STDIN, bytes(frames.WINDOW))  # 64 KiB that nobody reads
            peer.sock.sendall(protocol.resize(1, 2) * 5000)
            peers.append(peer)
        time.sleep(0.5)
        assert kilobytes(guest) - before < 20 * 1024
        for peer in peers:
            peer.sock.close()


def test_a_client_that_reads_nothing_is_not_told_of_each_signal(guest: Guest) -> None:
    """Else the agent's memory would fill with what it has to say."""
    with ask(guest, b"/bin/sleep", b"1000").sock as sock:
        sock.sendall(protocol.signal(signal.SIGWINCH) * 100_000)
        assert within(HANG, lambda: fcntl.ioctl(sock, termios.TIOCOUTQ, bytes(4)) == bytes(4))
        answers = 0
        while not Peer(sock).is_silent():
            answers += len(sock.recv(1 << 16))
        assert 0 < answers < 100_000 * len(protocol.signalled()) / 2


def test_a_shortage_of_descriptors_is_survived(engine: str, tmp_path: Path) -> None:
    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_NOFILE, (40, 40))

    with agent_on(tmp_path / "agent.sock", engine=engine, preexec_fn=limit) as guest:
        peers = [dial_agent(guest) for _ in range(12)]
        for peer in peers:
            peer.sock.sendall(Request(EXEC, arguments=[b"/bin/sleep", b"1000"]).encode())
        time.sleep(0.5)
        for peer in peers:
            peer.sock.close()
        assert within(HANG, lambda: exec_in(guest, "echo", "well", engine=engine).stdout == b"well\n")


def test_a_shortage_of_processes_is_a_sentence(engine: str, tmp_path: Path) -> None:
    if os.getuid() == 0:
        pytest.skip("by design: root may start any number of processes")

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_NPROC, (3, 3))

    with agent_on(tmp_path / "agent.sock", engine=engine, preexec_fn=limit) as guest:
        assert exec_in(guest, "true", engine=engine).returncode == 125


def test_at_rest_nothing_wakes_up(guest: Guest) -> None:
    run_by_hand(guest, b"/bin/true")
    idle = dial_agent(guest)
    channel = ask(guest, b"/bin/sleep", b"1000")
    time.sleep(0.3)

    def switches() -> int:
        found = 0
        for status in Path(f"/proc/{guest.agent.pid}/task").glob("*/status"):
            found += sum(map(int, re.findall(r"ctxt_switches:\s+(\d+)", status.read_text())))
        return found

    before = switches()
    time.sleep(1.5)
    assert switches() == before
    for peer in idle, channel:
        peer.sock.close()


def test_what_the_agent_inherited_is_not_for_its_commands(engine: str, tmp_path: Path) -> None:
    """A descriptor, an ignored signal, a blocked one, a higher OOM score."""
    read_end, write_end = os.pipe()

    def spoil() -> None:
        os.set_inheritable(read_end, True)
        signal.signal(signal.SIGUSR1, signal.SIG_IGN)
        signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR2])
        Path("/proc/self/oom_score_adj").write_text("500")

    script = "ls /proc/self/fd | wc -l; grep -E '^Sig(Blk|Ign)' /proc/self/status; cat /proc/self/oom_score_adj"
    options = {"preexec_fn": spoil, "pass_fds": [read_end], "env": {**os.environ, "NOTIFY_SOCKET": "/nope"}}
    with agent_on(tmp_path / "agent.sock", engine=engine, **options) as guest:
        done = exec_in(guest, "sh", "-c", script + "; env | grep -c NOTIFY", engine=engine)
    descriptors, _, blocked, _, ignored, score, notify = done.stdout.split()
    assert (descriptors, score, notify) == (b"4", b"0", b"0")
    assert int(blocked, 16) == 0
    assert int(ignored, 16) & ~LIBC_SIGNALS == 0
    os.close(read_end)
    os.close(write_end)


def test_a_command_has_the_limit_of_descriptors_that_the_agent_was_given(engine: str, tmp_path: Path) -> None:
    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_NOFILE, (123, 1000))

    with agent_on(tmp_path / "agent.sock", engine=engine, preexec_fn=limit) as guest:
        done = exec_in(guest, "sh", "-c", "ulimit -Sn; ulimit -Hn", engine=engine)
    assert done.stdout.split() == [b"123", b"1000"]


def test_it_says_when_it_is_ready(tmp_path: Path) -> None:
    read_end, write_end = os.pipe()
    manager = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    manager.bind(str(tmp_path / "notify"))
    manager.settimeout(HANG)
    environment = {**os.environ, "NOTIFY_SOCKET": str(tmp_path / "notify")}
    path = tmp_path / "agent.sock"
    with agent_on(path, "--ready-fd", str(write_end), pass_fds=[write_end], env=environment):
        os.close(write_end)
        assert os.read(read_end, 1000) == f"unix:{path}\n".encode()
        assert manager.recv(1000).startswith(b"READY=1\n")
    os.close(read_end)
    manager.close()


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["x"], "unexpected argument x"),
        (["--listen", "/x"], "invalid --listen '/x': expected unix:PATH"),
        (["--allow-cid", "-1"], "invalid --allow-cid '-1': expected a number"),
        (["--engine", "x"], "unknown engine 'x'"),
        (["--forward", "22"], "invalid --forward '22', its target '': expected HOST:PORT"),
        (["--forward", "22=x"], "invalid --forward '22=x', its target 'x': expected HOST:PORT"),
        (["--fast"], "unknown option --fast"),
        (["--ready-fd", "99"], "--ready-fd 99"),
    ],
)
def test_wrong_usage_is_2(arguments: list[str], sentence: str) -> None:
    done = subprocess.run(umbrella("agent", *arguments), capture_output=True, timeout=HANG, check=False)
    assert done.returncode == 2
    assert sentence in done.stderr.decode()


def test_as_process_1_it_reaps_orphans(engine: str, tmp_path: Path) -> None:
    path = tmp_path / "agent.sock"
    command = [
        "unshare",
        "--pid",
        "--fork",
        "--mount-proc",
        "--kill-child",
        *umbrella("agent", "--listen", f"unix:{path}"),
    ]
    with started(command, stdin=subprocess.DEVNULL) as child:
        if not child.stdout.readline():
            pytest.skip("no new process namespace here")
        guest = Guest(str(path), child)
        exec_in(guest, "sh", "-c", "(sleep 0.1 & sleep 0.2 &) ; true", engine=engine)
        look = "grep -l '^State:.Z' /proc/[0-9]*/status | wc -l"
        assert within(HANG, lambda: exec_in(guest, "sh", "-c", look, engine=engine).stdout == b"0\n")


def test_a_forward_joins_a_port_to_tcp_inside_the_guest(engine: str, tmp_path: Path) -> None:
    """Also to one that is not listened on yet; both by the agent's Unix socket, which knows ports as a VMM's does."""
    with socket.socket() as later:
        later.bind(("127.0.0.1", 0))
        port = later.getsockname()[1]
        with agent_on(tmp_path / "agent.sock", "--forward", f"22=127.0.0.1:{port}", engine=engine) as guest:
            host = fastvsock.connect(guest.uds, 22)
            host.settimeout(HANG)
            time.sleep(0.3)
            later.listen()
            near, _ = later.accept()
            with host, near:
                data = os.urandom(3_000_000)
                sender = threading.Thread(target=host.sendall, args=(data,))
                sender.start()
                assert receive(near, len(data)) == data
                sender.join()
                near.sendall(data[:100_000])
                near.close()
                assert receive(host) == data[:100_000]
            assert run_by_hand(guest, b"/bin/echo", b"well") == (b"well\n", 0)


@contextmanager
def forwarded(folder: Path, engine: str) -> Iterator[tuple[socket.socket, socket.socket]]:
    """The two ends of a connection through a forward: the host's, and the server's inside the guest."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        forward = f"22=127.0.0.1:{server.getsockname()[1]}"
        with (
            agent_on(folder / "agent.sock", "--forward", forward, engine=engine) as guest,
            fastvsock.connect(guest.uds, 22) as host,
        ):
            host.settimeout(HANG)
            near, _ = server.accept()
            with near:
                yield host, near


def test_a_server_that_closes_closes_the_whole_forward_since_a_vmm_hides_half_closes(
    engine: str, tmp_path: Path
) -> None:
    with forwarded(tmp_path, engine) as (host, near):
        near.sendall(b"bye")
        near.close()
        assert receive(host) == b"bye"
        assert within(HANG, lambda: has_closed(host.fileno()))


def test_a_server_that_half_closes_still_gets_what_the_host_sends(engine: str, tmp_path: Path) -> None:
    with forwarded(tmp_path, engine) as (host, near):
        near.shutdown(socket.SHUT_WR)
        assert receive(host) == b""
        host.sendall(b"more")
        assert receive(near, 4) == b"more"
        near.close()
        assert within(HANG, lambda: has_closed(host.fileno()))


def test_a_forward_that_nobody_answers_is_a_line(engine: str, tmp_path: Path) -> None:
    with agent_on(tmp_path / "agent.sock", "--forward", "22=nowhere.invalid:22", engine=engine) as guest:
        with fastvsock.connect(guest.uds, 22) as host:
            assert receive(host) == b""
        guest.agent.terminate()
        assert b"cannot connect to nowhere.invalid port 22: " in guest.agent.stderr.read()
