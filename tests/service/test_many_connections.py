"""Many connections, at once and one after another: none is lost, and nothing is left behind."""

import re
import resource
import subprocess
import time
from pathlib import Path

import pytest

from support import HANG, descriptors
from support.services import (
    FarEnd,
    Running,
    allow_descriptors,
    ask,
    eventually,
    receive,
    service_command,
    serving,
    status_of,
)


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
        pytest.skip(f"this machine: {count} connections take {9 * count} descriptors, and the hard limit is {hard}")
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
    expected = r"fastvsock: ulimit -Hn is 80: serving at most \d connections at a time instead of 1023; others wait\n"
    assert re.fullmatch(expected, said)


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
