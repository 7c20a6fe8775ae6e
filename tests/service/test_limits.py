"""What happens where descriptors, threads or address space run out: connections wait, and none is lost."""

import errno
import resource
import socket

import pytest

from fastvsock import errors, handshake
from fastvsock.services import limits
from support import HANG, descriptors, started
from support.services import (
    FarEnd,
    allow_descriptors,
    connect,
    eventually,
    pass_as,
    receive,
    script_command,
    service_command,
    serving,
    status_of,
)


def limited(option: str) -> list[str]:
    """What to run a command through so that it has the limit."""
    return ["sh", "-c", f'ulimit {option}; exec "$@"', "sh"]


def test_a_shortage_has_an_errno_of_its_own() -> None:
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (3, before[1]))
    try:
        with pytest.raises(errors.ConnectError) as caught:
            handshake.connect("/nowhere", 1)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)
    assert caught.value.errno == errno.EMFILE


def asking(address: str, count: int) -> list[socket.socket]:
    """So many clients at once, each of which has asked."""
    clients = [connect(address) for _ in range(count)]
    for sock in clients:
        sock.sendall(b"x")
    return clients


def answered(clients: list[socket.socket]) -> int:
    """How many of them are answered, if each stays until it is."""
    answers = []
    for sock in clients:
        with sock:
            try:
                answers.append(receive(sock, 1))
            except ConnectionError:
                answers.append(b"")
    return answers.count(b"x")


@pytest.mark.parametrize("limit", ["-n 1024", "-n 256"])
def test_more_clients_than_fit_are_all_served(far_end: FarEnd, engine: str, limit: str) -> None:
    allow_descriptors(3000)
    with serving("proxy", far_end.uds, "7", engine=engine, before=limited(limit)) as proxy:
        assert answered(asking(proxy.address, 200)) == 200
        status, said = proxy.end()
    assert status == 0
    assert said.count("\n") == 1, "that the limit is lower than asked for, and nothing else"


def test_a_connection_takes_no_more_descriptors_than_it_is_counted_for(far_end: FarEnd, engine: str) -> None:
    with serving("proxy", far_end.uds, "7", engine=engine) as proxy:
        idle = len(descriptors(proxy.child.pid))
        clients = [proxy.connect() for _ in range(20)]
        for sock in clients:
            sock.sendall(b"x")
            assert receive(sock, 1) == b"x"
        taken = len(descriptors(proxy.child.pid)) - idle
        assert taken / len(clients) <= limits.DESCRIPTORS - 1, "and one is left for a moment's use"
        for sock in clients:
            sock.close()


def test_a_shortage_after_accept_is_waited_out(far_end: FarEnd) -> None:
    with serving("proxy", far_end.uds, "7") as proxy:
        pid = proxy.child.pid
        before = resource.prlimit(pid, resource.RLIMIT_NOFILE)
        resource.prlimit(pid, resource.RLIMIT_NOFILE, (len(descriptors(pid)) + 3, before[1]))
        with proxy.connect() as sock:
            sock.sendall(b"x")
            eventually(lambda: far_end.taken, 1)
            sock.settimeout(0.5)
            with pytest.raises(TimeoutError):
                sock.recv(1)
            resource.prlimit(pid, resource.RLIMIT_NOFILE, before)
            sock.settimeout(HANG)
            assert receive(sock, 1) == b"x"
        assert proxy.end() == (0, "")


FEW_THREADS = """\
import _thread, threading
start, running = _thread.start_new_thread, []
def bent(function, arguments, *more):
    if len(running) >= 21: raise RuntimeError("can't start new thread")
    running.append(1)
    def run(*arguments):
        try: function(*arguments)
        finally: running.pop()
    return start(run, arguments, *more)
_thread.start_new_thread = threading._start_new_thread = bent
"""


def test_where_threads_are_few_clients_wait_and_all_are_served(far_end: FarEnd) -> None:
    with started(script_command(FEW_THREADS, "proxy", far_end.uds, "7")) as child:
        address = child.stdout.readline().decode().split()[-1]
        clients = asking(address, 30)
        said = b"fastvsock: cannot serve a connection yet: can't start new thread; waiting for another one to end\n"
        assert child.stderr.readline() == said
        assert answered(clients) == 30
        child.terminate()
        assert child.wait(HANG) == 0


def test_threads_are_cheap_in_address_space(far_end: FarEnd) -> None:
    with serving("proxy", far_end.uds, "7", env={"MALLOC_ARENA_MAX": "1"}) as proxy:
        clients = [proxy.connect() for _ in range(2)]  # what the first ones load is not counted
        for sock in clients:
            sock.sendall(b"x")
            assert receive(sock, 1) == b"x"
        before = status_of(proxy.child.pid, "VmSize")
        clients += [proxy.connect() for _ in range(50)]
        for sock in clients[2:]:
            sock.sendall(b"x")
            assert receive(sock, 1) == b"x"
        each = (status_of(proxy.child.pid, "VmSize") - before) / 50
        assert each < 2048, "KiB; two of the usual stacks would be 16384"
        for sock in clients:
            sock.close()


@pytest.mark.parametrize("option", ["--once", "--max-connections=1"])
def test_of_two_passed_sockets_one_connection_at_a_time_is_served(far_end: FarEnd, option: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as one, socket.create_server(("127.0.0.1", 0)) as two:
        clients = [socket.create_connection(server.getsockname(), HANG) for server in (one, two)]
        for sock in clients:
            sock.sendall(b"x")
        before = [*pass_as(one.fileno(), 3), *pass_as(two.fileno(), 4)]
        words = service_command("proxy", option, far_end.uds, "7")
        script = ["env", "LISTEN_FDS=2", *before, *words]
        with started(script, pass_fds=[one.fileno(), two.fileno()]) as child:
            assert child.stdout.readline().startswith(b"listening on ")
            eventually(lambda: far_end.taken, 1)
            for sock in clients:
                sock.settimeout(0.5)
            answers = []
            for sock in clients:
                try:
                    answers.append(sock.recv(1))
                except (TimeoutError, ConnectionError):
                    answers.append(b"")
            assert sorted(answers) == [b"", b"x"]
            assert far_end.taken == 1
        for sock in clients:
            sock.close()
