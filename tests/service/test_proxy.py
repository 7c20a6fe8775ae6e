"""What `fastvsock proxy` promises: where it listens, whom it serves, how it ends, and that no byte is lost."""

import os
import pty
import re
import resource
import signal
import socket
import stat
import subprocess
import sys
import threading
import time
import urllib.request
from pathlib import Path

import pytest

from fastvsock import errors, listening, peer, proxy, service
from support import (
    COMMAND,
    ECHO,
    HANG,
    LATE_SOURCE,
    NOTHING,
    SOURCE,
    SOURCE_SIZE,
    Endpoint,
    Listener,
    descriptors,
    pattern,
    started,
    summary,
)
from support.services import (
    FarEnd,
    Running,
    allow_descriptors,
    ask,
    connect,
    eventually,
    is_alive,
    pass_as,
    receive,
    run_proxy,
    service_command,
    serving,
    status_of,
)

CONNECTED = "import os, socket, sys; s = socket.create_connection(('127.0.0.1', int(sys.argv[1])))\n"
ASK = CONNECTED + "s.sendall(b'ask'); print(s.recv(3).decode() or 'closed', flush=True)"


@pytest.fixture(params=["127.0.0.1:0", "[::1]:0", "unix"])
def where(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """Each kind of address to listen on."""
    return f"unix:{tmp_path / 'listen'}" if request.param == "unix" else str(request.param)


# Where it listens


def test_every_connection_is_relayed(endpoint: Endpoint, engine: str, where: str) -> None:
    payload = pattern(endpoint.size(8_000_000))
    with serving("proxy", "--listen", where, endpoint.uds, str(ECHO), engine=engine) as proxy:
        answers: list[bytes] = []
        threads = [threading.Thread(target=lambda: answers.append(echoed(proxy, payload))) for _ in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert answers == [payload] * 3
        assert proxy.end() == (0, "")


def echoed(proxy: Running, payload: bytes) -> bytes:
    with proxy.connect() as sock:
        feeder = threading.Thread(target=sock.sendall, args=(payload,))
        feeder.start()
        data = receive(sock, len(payload))
        feeder.join()
        return data


def test_the_kernel_chooses_the_port_on_loopback(far_end: FarEnd) -> None:
    with serving("proxy", far_end.uds, "7") as one, serving("proxy", far_end.uds, "7") as two:
        assert one.address.startswith("127.0.0.1:")
        assert 0 < one.port != two.port > 0


@pytest.mark.parametrize("address", ["0.0.0.0:0", "[::]:0", "192.0.2.1:5"])
def test_an_address_that_is_not_loopback_must_be_allowed(far_end: FarEnd, address: str) -> None:
    done = run_proxy("--listen", address, far_end.uds, "7")
    assert (done.returncode, done.stdout) == (2, b"")
    assert done.stderr.startswith(f"fastvsock: {address} can be reached from other machines".encode())
    assert str(listening.parse(address, remote=True)) == address


@pytest.mark.parametrize("address", ["", "80", "unix:", "127.0.0.1", "127.0.0.1:65536", "::1:80", "example.com:80"])
def test_an_address_that_is_none_is_told_in_a_sentence(address: str) -> None:
    with pytest.raises(errors.UsageError, match="is no address to listen on"):
        listening.parse(address, remote=True)


def test_a_port_that_is_taken_is_told_in_a_sentence(far_end: FarEnd) -> None:
    with serving("proxy", far_end.uds, "7") as proxy:
        done = run_proxy("--listen", proxy.address, far_end.uds, "7")
    assert done.returncode == 1
    assert done.stderr == f"fastvsock: cannot listen on {proxy.address}: Address already in use\n".encode()


def test_a_socket_file_is_its_owners_alone_and_goes_with_the_proxy(far_end: FarEnd, tmp_path: Path) -> None:
    path = tmp_path / "listen"
    with serving("proxy", "--listen", f"unix:{path}", far_end.uds, "7", umask=0) as proxy:
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        assert ask(proxy.address, b"x") == b"x"
        assert proxy.end() == (0, "")
    assert not path.exists()


def test_a_socket_file_is_never_open_to_others_not_for_a_moment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []

    class Watched(socket.socket):
        def bind(self, address: object) -> None:
            super().bind(address)  # type: ignore[arg-type]
            seen.append(stat.S_IMODE(os.stat(str(address)).st_mode))

    monkeypatch.setattr(socket, "socket", Watched)
    before = os.umask(0)
    try:
        listening.open_listener(listening.Address(path=str(tmp_path / "listen"))).close()
        assert os.umask(0) == 0, "the umask is as it was"
    finally:
        os.umask(before)
    assert seen == [0o600]


def test_a_stale_socket_file_is_replaced(far_end: FarEnd, tmp_path: Path) -> None:
    path = tmp_path / "listen"
    with socket.socket(socket.AF_UNIX) as stale:
        stale.bind(str(path))
    with serving("proxy", "--listen", f"unix:{path}", far_end.uds, "7") as proxy:
        assert ask(proxy.address, b"x") == b"x"


def test_a_live_socket_file_is_left_alone(far_end: FarEnd, tmp_path: Path) -> None:
    path = tmp_path / "listen"
    with serving("proxy", "--listen", f"unix:{path}", far_end.uds, "7") as proxy:
        done = run_proxy("--listen", f"unix:{path}", far_end.uds, "7")
        assert done.returncode == 1
        assert b"another process listens on it" in done.stderr
        assert ask(proxy.address, b"x") == b"x"


def test_what_is_no_socket_is_left_alone(far_end: FarEnd, tmp_path: Path) -> None:
    path = tmp_path / "precious"
    path.write_text("data")
    done = run_proxy("--listen", f"unix:{path}", far_end.uds, "7")
    assert done.returncode == 1
    assert b"it is no socket" in done.stderr
    assert path.read_text() == "data"


def test_of_many_that_find_one_stale_socket_file_one_gets_the_place(tmp_path: Path) -> None:
    address = listening.Address(path=str(tmp_path / "listen"))
    for _ in range(20):
        with socket.socket(socket.AF_UNIX) as stale:
            stale.bind(address.path)
        won: list[listening.Listener] = []
        start = threading.Barrier(8)

        def one(won: list[listening.Listener] = won, start: threading.Barrier = start) -> None:
            start.wait()
            try:
                won.append(listening.open_listener(address))
            except errors.FastvsockError:
                pass

        threads = [threading.Thread(target=one) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(won) == 1
        connect(str(address)).close()
        won[0].close()


def test_a_socket_file_that_another_process_has_put_there_since_is_left_alone(tmp_path: Path) -> None:
    address = listening.Address(path=str(tmp_path / "listen"))
    first = listening.open_listener(address)
    os.unlink(address.path)
    second = listening.open_listener(address)
    first.close()
    connect(str(address)).close()
    second.close()


def test_a_path_longer_than_an_address_works(far_end: FarEnd, tmp_path: Path) -> None:
    folder = tmp_path / ("d" * 100)
    folder.mkdir()
    listener = listening.open_listener(listening.Address(path=str(folder / "listen")))
    held = os.open(folder, os.O_PATH)
    connect(f"unix:/proc/self/fd/{held}/listen").close()
    os.close(held)
    listener.close()
    assert not (folder / "listen").exists()


# How it tells


def test_the_port_file_is_whole_from_its_first_moment_and_goes_with_the_proxy(far_end: FarEnd, tmp_path: Path) -> None:
    path = tmp_path / "port"
    path.write_text("an old one")
    with path.open() as old, serving("proxy", "--port-file", str(path), far_end.uds, "7") as proxy:
        assert path.read_text() == f"{proxy.port}\n"
        assert old.read() == "an old one", "it was replaced, not written over"
        assert proxy.end() == (0, "")
    assert not path.exists()
    assert [entry.name for entry in tmp_path.iterdir()] == ["far.sock"]


def test_a_port_file_that_cannot_be_written_is_told_in_a_sentence(far_end: FarEnd, tmp_path: Path) -> None:
    done = run_proxy("--port-file", str(tmp_path / "no" / "port"), far_end.uds, "7")
    assert done.returncode == 1
    assert done.stderr.count(b"\n") == 1
    assert b"cannot write the port file" in done.stderr


def test_the_ready_descriptor_gets_the_address_and_its_end(far_end: FarEnd) -> None:
    ready, its_ready = os.pipe()
    arguments = ("--ready-fd", str(its_ready), far_end.uds, "7")
    with serving("proxy", *arguments, pass_fds=[its_ready]) as proxy, os.fdopen(ready) as reader:
        os.close(its_ready)
        assert reader.read() == f"{proxy.address}\n"


@pytest.mark.parametrize("abstract", [False, True], ids=["path", "abstract"])
def test_the_service_manager_is_told_of_start_and_stop(far_end: FarEnd, tmp_path: Path, abstract: bool) -> None:
    name = f"@fastvsock-{os.getpid()}-{tmp_path.name}" if abstract else str(tmp_path / "notify")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.settimeout(HANG)
        manager.bind(name.replace("@", "\0"))
        with serving("proxy", far_end.uds, "7", env=os.environ | {"NOTIFY_SOCKET": name}) as proxy:
            assert manager.recv(4096).decode() == f"READY=1\nSTATUS=Listening on {proxy.address}"
            assert proxy.end() == (0, "")
            assert manager.recv(4096) == b"STOPPING=1"


def test_sockets_passed_by_systemd_are_served(far_end: FarEnd) -> None:
    with socket.create_server(("127.0.0.1", 0)) as passed:
        before, environment = pass_as(passed.fileno(), 3), os.environ | {"LISTEN_FDS": "1"}
        with serving("proxy", far_end.uds, "7", before=before, pass_fds=[passed.fileno()], env=environment) as proxy:
            assert proxy.port == passed.getsockname()[1]
            assert ask(proxy.address, b"x") == b"x"


def test_sockets_passed_to_another_process_are_not_touched(far_end: FarEnd) -> None:
    environment = os.environ | {"LISTEN_FDS": "1", "LISTEN_PID": "1"}
    with serving("proxy", far_end.uds, "7", env=environment) as proxy:
        assert ask(proxy.address, b"x") == b"x"


def test_a_passed_descriptor_that_does_not_listen_is_told_in_a_sentence(far_end: FarEnd) -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        done = subprocess.run(
            [*pass_as(theirs.fileno(), 3), *service_command("proxy", far_end.uds, "7")],
            capture_output=True,
            pass_fds=[theirs.fileno()],
            env=os.environ | {"LISTEN_FDS": "1"},
            timeout=HANG,
            check=False,
        )
    assert done.returncode == 1
    assert b"descriptor 3 of LISTEN_FDS is no listening stream socket" in done.stderr


# No byte is lost


def test_a_client_gets_everything_although_the_guest_read_nothing_of_what_it_sent(
    endpoint: Endpoint, engine: str, where: str
) -> None:
    # To close a socket with unread input resets the connection, and a reset takes away what is still under way.
    with serving("proxy", "--listen", where, endpoint.uds, str(SOURCE), engine=engine) as proxy:
        with proxy.connect() as sock:
            feeder = threading.Thread(target=send_until_broken, args=(sock, bytes(16_000_000)))
            feeder.start()
            time.sleep(0.3)
            assert receive(sock) == pattern(SOURCE_SIZE)
            sock.shutdown(socket.SHUT_RDWR)
            feeder.join()
        assert proxy.end()[0] == 0


def send_until_broken(sock: socket.socket, data: bytes) -> None:
    try:
        sock.sendall(data)
    except OSError:
        pass


def test_the_last_words_of_a_client_that_is_gone_reach_the_guest(listener: Listener, engine: str, where: str) -> None:
    payload = pattern(6_000_000)
    with serving("proxy", "--listen", where, listener.uds, "7", engine=engine) as proxy:
        client = proxy.connect()
        guest = listener.accept()
        feeder = threading.Thread(target=send_and_close, args=(client, payload))
        feeder.start()
        with guest:
            guest.sendall(b"what nobody will read")
            time.sleep(0.3)  # the client is stuck, or gone, with much of it in the sockets between
            assert receive(guest) == payload
        feeder.join()
        assert proxy.end() == (0, "")


def send_and_close(sock: socket.socket, data: bytes) -> None:
    with sock:
        sock.sendall(data)
        sock.recv(21)


def test_a_peer_that_never_ends_talking_is_left_in_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(proxy, "FAREWELL", 0.3)
    near, client = socket.socketpair()
    talker = threading.Thread(target=talk, args=(client,))
    talker.start()
    proxy.hang_up(near)
    assert near.fileno() == -1
    talker.join(HANG)
    assert not talker.is_alive()
    client.close()


def talk(sock: socket.socket) -> None:
    while True:
        try:
            sock.sendall(b"x")
        except OSError:
            return


def test_a_peer_that_has_not_read_everything_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(proxy, "FAREWELL", 0.1)
    monkeypatch.setattr(proxy, "SILENCE", 0.1)
    near, client = socket.socketpair()
    near.send(b"x")
    leaving = threading.Thread(target=proxy.hang_up, args=(near,))
    leaving.start()
    leaving.join(0.5)
    assert leaving.is_alive()
    assert receive(client) == b"x"
    leaving.join(HANG)
    assert not leaving.is_alive()
    client.close()


def test_a_client_that_closes_without_a_word_is_gone_at_once(far_end: FarEnd, engine: str, where: str) -> None:
    with serving("proxy", "--listen", where, far_end.uds, "7", engine=engine) as proxy:
        for _ in range(5):
            proxy.connect().close()
        eventually(lambda: far_end.taken, 5)
        eventually(lambda: far_end.held, 0)
        assert proxy.end() == (0, "")


def test_a_half_close_of_the_client_does_not_cost_the_answer(endpoint: Endpoint, engine: str, where: str) -> None:
    payload = pattern(endpoint.size(8_000_000))
    arguments = ("--linger", endpoint.linger, "--listen", where, endpoint.uds, str(COMMAND))
    with serving("proxy", *arguments, engine=engine) as proxy, proxy.connect() as sock:
        sock.sendall(b"sink %d\n" % len(payload) + payload)
        sock.shutdown(socket.SHUT_WR)
        assert receive(sock) == summary(payload)


def test_a_client_that_only_receives_waits_as_long_as_it_takes(endpoint: Endpoint, engine: str) -> None:
    with serving("proxy", endpoint.uds, str(LATE_SOURCE), engine=engine) as proxy, proxy.connect() as sock:
        sock.shutdown(socket.SHUT_WR)
        assert receive(sock) == pattern(SOURCE_SIZE)


def test_a_client_that_reads_no_more_can_still_send(listener: Listener, engine: str) -> None:
    with serving("proxy", "--listen", f"unix:{listener.uds}.p", listener.uds, "7", engine=engine) as proxy:
        client = proxy.connect()
        with client, listener.accept() as guest:
            client.shutdown(socket.SHUT_RD)
            guest.sendall(b"what nobody will read")
            time.sleep(0.2)
            client.sendall(b"more")
            assert receive(guest, 4) == b"more"


# One connection's failure is its own


def test_a_guest_that_refuses_gives_a_closed_connection_and_one_line(endpoint: Endpoint, where: str) -> None:
    with serving("proxy", "--listen", where, endpoint.uds, str(NOTHING)) as proxy:
        with proxy.connect() as sock:
            sock.sendall(b"SSH-2.0-hello\r\n")
            assert receive(sock) == b""
        status, said = proxy.end()
    assert status == 0
    assert said.count("\n") == 1
    assert re.match(rf"fastvsock: .*: {endpoint.uds}: guest port {NOTHING} refused: ", said)


def test_one_connections_failure_never_touches_another(listener: Listener, engine: str) -> None:
    with serving("proxy", listener.uds, "7", engine=engine) as proxy:
        with proxy.connect() as good, listener.accept() as guest:
            with proxy.connect() as refused:
                listener.accept(b"").close()
                assert receive(refused) == b""
            with proxy.connect() as garbled:
                listener.accept(b"garbage\n").close()
                assert receive(garbled) == b""
            with proxy.connect(), listener.accept() as reset:
                reset.close()
            aborted = proxy.connect()
            with listener.accept() as orphan:
                aborted.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
                aborted.close()
                assert receive(orphan) == b""
            guest.sendall(b"still there")
            assert receive(good, 11) == b"still there"
        status, said = proxy.end()
    assert status == 0
    assert said.count("\n") == 2, said


def test_a_vmm_that_is_not_there_yet_is_waited_for(tmp_path: Path) -> None:
    with serving("proxy", "--wait", str(HANG), str(tmp_path / "late.sock"), "7") as proxy, proxy.connect() as sock:
        sock.sendall(b"x")
        time.sleep(0.1)
        far_end = FarEnd(tmp_path / "late.sock")
        assert receive(sock, 1) == b"x"
        sock.close()
        far_end.close()


# Many


def test_over_the_limit_clients_wait_in_the_backlog(far_end: FarEnd) -> None:
    with (
        serving("proxy", "--max-connections", "2", far_end.uds, "7") as proxy,
        proxy.connect() as one,
        proxy.connect() as two,
        proxy.connect() as three,
    ):
        for sock in (one, two, three):
            sock.sendall(b"x")
        assert (receive(one, 1), receive(two, 1)) == (b"x", b"x")
        three.settimeout(0.3)
        with pytest.raises(TimeoutError):
            three.recv(1)
        assert far_end.held == 2
        three.settimeout(HANG)
        two.close()
        assert receive(three, 1) == b"x"


def test_a_thousand_connections_at_once(far_end: FarEnd, engine: str) -> None:
    count = 1000
    allow_descriptors(3 * count)
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    if hard < 9 * count:
        pytest.skip(f"{count} connections take {9 * count} descriptors, and the hard limit is {hard}")
    with serving("proxy", far_end.uds, "7", engine=engine) as proxy:
        idle = footprint(proxy)
        clients = [proxy.connect() for _ in range(count)]
        for number, sock in enumerate(clients):
            sock.sendall(b"%06d" % number)
        assert [receive(sock, 6) for sock in clients] == [b"%06d" % number for number in range(count)]
        assert far_end.held == count
        for sock in clients:
            sock.close()
        eventually(lambda: footprint(proxy), idle)
        assert proxy.end() == (0, "")


def footprint(proxy: Running) -> tuple[int, int]:
    """Descriptors and threads."""
    return len(descriptors(proxy.child.pid)), status_of(proxy.child.pid, "Threads")


def test_ten_thousand_connections_one_after_another_leave_nothing_behind(far_end: FarEnd) -> None:
    with serving("proxy", far_end.uds, "7") as proxy:
        idle = footprint(proxy)
        for number in range(10_000):
            if number == 1000:
                memory = status_of(proxy.child.pid, "VmRSS")
            assert ask(proxy.address, b"x") == b"x"
        eventually(lambda: footprint(proxy), idle)
        assert status_of(proxy.child.pid, "VmRSS") < memory + 2048, "KiB; a leak of 1 KiB a connection would be 9000"
        assert proxy.end() == (0, "")


def test_the_limit_of_descriptors_is_raised_for_the_proxy_and_not_for_its_command(far_end: FarEnd) -> None:
    limited = ["sh", "-c", 'ulimit -Sn 200; exec "$@"', "sh"]
    with serving("proxy", far_end.uds, "7", before=limited) as proxy:
        assert soft_limit(proxy.child.pid) == str(resource.getrlimit(resource.RLIMIT_NOFILE)[1])
    shell = [*limited, *service_command("proxy", far_end.uds, "7", "--", "sh", "-c", "sleep 0.3; ulimit -Sn")]
    assert subprocess.run(shell, stdout=subprocess.PIPE, timeout=HANG, check=False).stdout == b"200\n"


def soft_limit(pid: int) -> str:
    text = Path(f"/proc/{pid}/limits").read_text()
    return next(line for line in text.splitlines() if line.startswith("Max open files")).split()[3]


def test_where_descriptors_are_few_more_connections_wait(far_end: FarEnd) -> None:
    limited = ["sh", "-c", 'ulimit -n 80; exec "$@"', "sh"]
    with serving("proxy", far_end.uds, "7", before=limited) as proxy:
        clients = [proxy.connect() for _ in range(30)]
        for sock in clients:
            sock.sendall(b"x")
        for sock in clients:
            assert receive(sock, 1) == b"x"
            sock.close()
        status, said = proxy.end()
    assert status == 0
    assert re.fullmatch(r"fastvsock: the limit of 80 descriptors .* is enough for \d connections at once.*\n", said)


def test_a_shortage_of_descriptors_is_survived(far_end: FarEnd) -> None:
    with serving("proxy", far_end.uds, "7") as proxy:
        pid = proxy.child.pid
        before = resource.prlimit(pid, resource.RLIMIT_NOFILE)
        with proxy.connect() as one:
            one.sendall(b"x")
            assert receive(one, 1) == b"x"
            resource.prlimit(pid, resource.RLIMIT_NOFILE, (len(descriptors(pid)), before[1]))
            with proxy.connect() as two:
                two.sendall(b"y")
                assert b"cannot accept a connection: Too many open files" in proxy.child.stderr.readline()
                one.sendall(b"x")
                assert receive(one, 1) == b"x"
                time.sleep(1.5)
                resource.prlimit(pid, resource.RLIMIT_NOFILE, before)
                assert receive(two, 1) == b"y"
        status, said = proxy.end()
    assert status == 0
    assert said.count("\n") <= 3, "it tries again once a second, not as fast as it can"


# How it ends


def test_once_serves_one_connection_and_turns_others_away(far_end: FarEnd, engine: str) -> None:
    with serving("proxy", "--once", far_end.uds, "7", engine=engine) as proxy:
        with proxy.connect() as sock:
            sock.sendall(b"x")
            assert receive(sock, 1) == b"x"
            eventually(lambda: refuses(proxy), True)
            sock.sendall(b"y")
            assert receive(sock, 1) == b"y"
        assert proxy.outcome() == (0, "")


def test_once_ends_with_the_failure_of_its_connection(far_end: FarEnd) -> None:
    with serving("proxy", "--once", far_end.uds, "0") as proxy:
        assert ask(proxy.address, b"x") == b""
        status, said = proxy.outcome()
    assert status == 1
    assert "guest port 0 refused" in said
    assert said.count("\n") == 1


def test_sigterm_stops_accepting_and_lets_open_relays_finish(far_end: FarEnd, engine: str) -> None:
    with serving("proxy", "--grace", str(HANG), far_end.uds, "7", engine=engine) as proxy, proxy.connect() as sock:
        sock.sendall(b"x")
        assert receive(sock, 1) == b"x"
        proxy.child.terminate()
        eventually(lambda: refuses(proxy), True)
        sock.sendall(b"y")
        assert receive(sock, 1) == b"y"
        sock.close()
        assert proxy.outcome() == (0, "")


def refuses(proxy: Running) -> bool:
    """Whether nobody listens any more. Looked up: a connection to find out would be served."""
    return f"0100007F:{proxy.port:04X} 00000000:0000 0A" not in Path("/proc/net/tcp").read_text()


def test_a_second_sigterm_ends_at_once(far_end: FarEnd) -> None:
    with serving("proxy", "--grace", "inf", far_end.uds, "7") as proxy, proxy.connect() as sock:
        sock.sendall(b"x")
        assert receive(sock, 1) == b"x"
        proxy.child.terminate()
        eventually(lambda: refuses(proxy), True)
        assert proxy.end() == (143, "fastvsock: 1 connection was still open: ended\n")


def test_when_the_grace_is_over_open_relays_are_ended(far_end: FarEnd) -> None:
    with serving("proxy", "--grace", "0.3", far_end.uds, "7") as proxy, proxy.connect() as sock:
        sock.sendall(b"x")
        assert receive(sock, 1) == b"x"
        assert proxy.end() == (0, "fastvsock: 1 connection was still open: ended\n")
        assert receive(sock) == b""


# With a command of its own


def test_the_command_gets_the_address_and_its_exit_status_is_the_proxys(far_end: FarEnd) -> None:
    script = 'echo "$1 $2 $FASTVSOCK_PORT $FASTVSOCK_HOST {port}"; exit 7'
    done = run_proxy(far_end.uds, "7", "--", "sh", "-c", script, "sh", "root@{host}:{port}", "{x}")
    assert (done.returncode, done.stderr) == (7, b"")
    # A word with blanks is a command for the guest, perhaps, and its braces are its own.
    assert re.fullmatch(rb"root@127\.0\.0\.1:(\d+) \{x\} \1 127\.0\.0\.1 \{port\}\n", done.stdout)


def test_the_command_gets_the_path_of_a_unix_socket(far_end: FarEnd, tmp_path: Path) -> None:
    path = tmp_path / "listen"
    done = run_proxy("--listen", f"unix:{path}", far_end.uds, "7", "--", "sh", "-c", "echo $0 $FASTVSOCK_UDS", "{uds}")
    assert done.stdout == f"{path} {path}\n".encode()
    assert not path.exists()


def test_a_placeholder_without_a_value_is_told_in_a_sentence(far_end: FarEnd) -> None:
    done = run_proxy(far_end.uds, "7", "--", "echo", "{uds}")
    assert (done.returncode, done.stdout) == (2, b"")
    assert b"{uds} in the command has no value" in done.stderr


def test_a_command_that_is_not_there_is_told_in_a_sentence(far_end: FarEnd, tmp_path: Path) -> None:
    done = run_proxy("--port-file", str(tmp_path / "port"), far_end.uds, "7", "--", "no-such-command")
    assert done.returncode == 127
    assert done.stderr == b"fastvsock: cannot run no-such-command: No such file or directory\n"
    assert not (tmp_path / "port").exists()


def test_a_command_that_dies_by_a_signal_gives_128_and_its_number(far_end: FarEnd) -> None:
    assert run_proxy(far_end.uds, "7", "--", "sh", "-c", "kill -9 $$").returncode == 137


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1])
def test_signals_are_passed_on_to_the_command(far_end: FarEnd, number: signal.Signals) -> None:
    script = f"trap 'echo got; exit 9' {number.name.removeprefix('SIG')}; echo ready; while :; do sleep 0.05; done"
    with started(service_command("proxy", far_end.uds, "7", "--", "sh", "-c", script)) as child:
        assert child.stdout.readline() == b"ready\n"
        child.send_signal(number)
        assert child.stdout.read() == b"got\n"
        assert child.wait(HANG) == 9


def test_the_command_starts_with_no_signal_blocked_or_ignored(far_end: FarEnd) -> None:
    done = run_proxy(far_end.uds, "7", "--", "grep", "-E", "^Sig(Blk|Ign)", "/proc/self/status")
    masks = [int(line.split()[1], 16) for line in done.stdout.splitlines()]
    ours = (1 << 31) - 1  # 32 and 33 are the C library's own: posix_spawn(3) ignores them
    assert [mask & ours for mask in masks] == [0, 0]


def test_ctrl_c_reaches_the_command_once(far_end: FarEnd) -> None:
    script = (
        "import signal, time; got = []; signal.signal(signal.SIGINT, lambda *_: got.append(1)); "
        "print('ready', flush=True); time.sleep(1); print(f'n={len(got)}')"
    )
    pid, terminal = pty.fork()
    if not pid:
        words = service_command("proxy", far_end.uds, "7", "--", sys.executable, "-c", script)
        os.execv(words[0], words)
    text = b""
    while b"ready" not in text:
        text += os.read(terminal, 1000)
    os.write(terminal, b"\x03")
    while b"n=" not in text:
        text += os.read(terminal, 1000)
    assert b"n=1" in text
    assert os.waitpid(pid, 0)[1] == 0
    os.close(terminal)


def test_a_strangers_connection_is_closed_and_told(far_end: FarEnd, where: str, tmp_path: Path) -> None:
    port_file = tmp_path / "port"
    command = ("sh", "-c", "echo ready; read line")
    arguments = ("--listen", where, "--port-file", str(port_file), far_end.uds, "7", "--", *command)
    with started(service_command("proxy", *arguments)) as child:
        assert child.stdout.readline() == b"ready\n"
        text = port_file.read_text().strip()
        address = f"unix:{text}" if text.startswith("/") else where.removesuffix("0") + text
        with connect(address) as sock:
            try:
                assert receive(sock) == b""
            except ConnectionResetError:
                pass
        assert far_end.held == 0
        child.stdin.write(b"\n")
        _, said = child.communicate(timeout=HANG)
        assert child.returncode == 0
        assert re.fullmatch(rb"fastvsock: .*: closed, for it is none of the command's own connections\n", said)


@pytest.mark.parametrize(
    "script",
    [
        'exec "$0" -c "$1" "$2"',
        '( "$0" -c "$1" "$2" ); :',
        '( ( sleep 0.1; exec "$0" -c "$1" "$2" ) & ); sleep 0.05; read line',
        '( setsid sh -c "sleep 0.1; exec \\"\\$0\\" -c \\"\\$1\\" \\$2" "$0" "$1" "$2" & ); read line',
    ],
    ids=["child", "grandchild", "orphan", "orphan in a session of its own"],
)
def test_a_descendants_connection_is_served(far_end: FarEnd, script: str) -> None:
    words = service_command("proxy", far_end.uds, "7", "--", "sh", "-c", script, sys.executable, ASK, "{port}")
    with started(words) as child:
        assert child.stdout.readline() == b"ask\n"
        child.communicate(b"\n", timeout=HANG)
        assert child.returncode == 0


def test_where_a_descendant_cannot_be_looked_into_its_user_decides(monkeypatch: pytest.MonkeyPatch) -> None:
    family = peer.Family()
    with (
        started(["sleep", str(HANG)]),
        socket.create_server(("127.0.0.1", 0)) as server,
        socket.create_connection(server.getsockname()),
    ):
        sock, _ = server.accept()
        connection = service.Connection(sock, "this process' own")
        assert family.refusal(connection) == peer.STRANGER, "for it is its parent's, not sleep's"
        monkeypatch.setattr(peer, "_has_open", lambda pid, inode: None)
        assert not family.refusal(connection)
        monkeypatch.setattr(peer, "_users", lambda pid: {os.getuid() + 1})
        assert family.refusal(connection) == peer.STRANGER
        sock.close()


def test_what_the_command_had_under_way_when_it_ended_is_delivered(listener: Listener, engine: str) -> None:
    # It fills all that lies between, until for half a second nothing fits any more, and is gone.
    script = CONNECTED + (
        "s.settimeout(0.5); sent = 0\n"
        "try:\n"
        "    while True: sent += s.send(bytes(100_000))\n"
        "except TimeoutError: print(sent, flush=True)"
    )
    words = service_command("proxy", listener.uds, "7", "--", sys.executable, "-c", script, "{port}", engine=engine)
    with started(words) as child, listener.accept() as guest:
        sent = int(child.stdout.readline())
        time.sleep(1.5)
        assert len(receive(guest)) == sent
        assert child.wait(HANG) == 0


def test_the_end_of_the_command_ends_what_it_left_open(far_end: FarEnd) -> None:
    # The orphan holds an idle connection: it is not waited for, and loses it.
    script = CONNECTED + "print(os.getpid(), flush=True); s.recv(1)"
    shell = '"$0" -c "$1" "$2" & read line'
    words = service_command(
        "proxy", "--grace", str(2 * HANG), far_end.uds, "7", "--", "sh", "-c", shell, sys.executable, script, "{port}"
    )
    with started(words) as child:
        orphan = int(child.stdout.readline())
        eventually(lambda: far_end.held, 1)
        child.stdin.write(b"\n")
        assert child.wait(HANG) == 0
        eventually(lambda: is_alive(orphan), False)
        eventually(lambda: far_end.held, 0)


def test_a_proxy_for_a_command_leaves_nothing_behind(far_end: FarEnd, tmp_path: Path) -> None:
    before = {entry.name for entry in tmp_path.iterdir()}
    listen, port = tmp_path / "listen", tmp_path / "port"
    arguments = ("--listen", f"unix:{listen}", "--port-file", str(port), far_end.uds, "7")
    done = run_proxy(*arguments, "--", "sh", "-c", f"ls {tmp_path}")
    assert done.stdout.split() == [b"far.sock", b"listen", b"port"]
    assert {entry.name for entry in tmp_path.iterdir()} == before
    assert far_end.held == 0


# What can be watched


def test_stats_are_lines_on_stderr(far_end: FarEnd) -> None:
    with serving("proxy", "--stats-interval", "0.2", far_end.uds, "7") as proxy, proxy.connect() as sock:
        sock.sendall(b"12345")
        assert receive(sock, 5) == b"12345"
        expected = "fastvsock: 1 connections open, 1 taken, 0 failed, 0 turned away; up 5 bytes, down 5 bytes\n"
        eventually(lambda: proxy.child.stderr.readline().decode(), expected)


def test_metrics_are_served_for_prometheus(far_end: FarEnd) -> None:
    pytest.importorskip("prometheus_client", reason="the extra fastvsock[metrics] is not installed")
    with serving("proxy", "--metrics", "127.0.0.1:0", far_end.uds, "7") as proxy, proxy.connect() as sock:
        url = re.search(r"http://127\.0\.0\.1:\d+/metrics", proxy.child.stderr.readline().decode())
        assert url
        sock.sendall(b"12345")
        assert receive(sock, 5) == b"12345"
        with urllib.request.urlopen(url.group(), timeout=HANG) as answer:
            lines = answer.read().decode().splitlines()
    assert "fastvsock_connections_open 1.0" in lines
    assert "fastvsock_connections_total 1.0" in lines
    assert 'fastvsock_bytes_total{direction="up"} 5.0' in lines
    assert 'fastvsock_bytes_total{direction="down"} 5.0' in lines


def test_without_the_prometheus_library_it_says_what_to_install(far_end: FarEnd, tmp_path: Path) -> None:
    (tmp_path / "prometheus_client.py").write_text("raise ImportError")
    environment = os.environ | {"PYTHONPATH": f"{tmp_path}:{os.environ.get('PYTHONPATH', '')}"}
    done = run_proxy("--metrics", "127.0.0.1:0", far_end.uds, "7", env=environment)
    assert done.returncode == 1
    assert done.stderr.endswith(b"pip install 'fastvsock[metrics]'\n")
    assert done.stderr.count(b"\n") == 1


def test_tcp_clients_are_not_delayed() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server, socket.create_connection(server.getsockname()):
        sock, address = server.accept()
        with sock:
            assert service._prepare(sock, address) == f"127.0.0.1 port {address[1]}"
            assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
            assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
