"""A command gets each signal once, however it was sent: to the proxy, to the group, by timeout, to a control group."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from support import HANG, Child, started
from support.services import FarEnd, children_of, eventually, is_alive, service_command, serving

# Prints the signals that came within a second from the first on.
COUNT = (
    "import signal, sys, time; got = []\n"
    "for n in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1):\n"
    "    signal.signal(n, lambda n, _: got.append(n))\n"
    "print('ready', flush=True)\n"
    "while not got: time.sleep(0.01)\n"
    "end = time.monotonic() + 1\n"
    "while time.monotonic() < end: time.sleep(0.05)\n"
    "print(*got)"
)


def counting(far_end: FarEnd, *before: str) -> list[str]:
    return service_command("proxy", far_end.uds, "7", "--", *before, sys.executable, "-c", COUNT)


def tree(pid: int) -> list[int]:
    """A process and its descendants, as a control group lists them."""
    return [pid, *(member for child in children_of(pid) for member in tree(child))]


def to_process(child: Child, number: int) -> None:
    os.kill(child.pid, number)


def to_group(child: Child, number: int) -> None:
    os.killpg(child.pid, number)


def to_control_group(child: Child, number: int) -> None:
    for pid in tree(child.pid):
        os.kill(pid, number)


def to_control_group_backwards(child: Child, number: int) -> None:
    for pid in reversed(tree(child.pid)):
        os.kill(pid, number)


WAYS = [to_process, to_group, to_control_group, to_control_group_backwards]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1])
@pytest.mark.parametrize("send", WAYS, ids=lambda way: way.__name__)
def test_a_signal_reaches_the_command_once(
    far_end: FarEnd, send: Callable[[Child, int], None], number: signal.Signals
) -> None:
    with started(counting(far_end), start_new_session=True) as proxy:
        assert proxy.stdout.readline() == b"ready\n"
        send(proxy, number)
        out, said = proxy.communicate(timeout=HANG)
    assert (proxy.returncode, out, said) == (0, f"{int(number)}\n".encode(), b"")


@pytest.mark.parametrize("options", [(), ("--foreground",)], ids=["timeout", "timeout --foreground"])
def test_timeout_ends_the_command_with_one_signal(far_end: FarEnd, options: tuple[str, ...]) -> None:
    done = subprocess.run(
        ["timeout", *options, "3", *counting(far_end)], capture_output=True, timeout=HANG, check=False
    )
    assert (done.stdout, done.stderr) == (b"ready\n15\n", b"")


def test_each_of_two_signals_reaches_the_command(far_end: FarEnd) -> None:
    with started(counting(far_end), start_new_session=True) as proxy:
        assert proxy.stdout.readline() == b"ready\n"
        to_group(proxy, signal.SIGTERM)
        time.sleep(0.4)
        to_process(proxy, signal.SIGTERM)
        assert proxy.communicate(timeout=HANG)[0] == b"15 15\n"


def test_a_command_that_has_left_the_group_gets_the_groups_signal(far_end: FarEnd) -> None:
    with started(counting(far_end, "setsid"), start_new_session=True) as proxy:
        assert proxy.stdout.readline() == b"ready\n"
        to_group(proxy, signal.SIGTERM)
        assert proxy.communicate(timeout=HANG)[0] == b"15\n"


def test_timeout_does_not_cut_the_grace_short(far_end: FarEnd, tmp_path: Path) -> None:
    port = tmp_path / "port"
    arguments = ("--grace", str(HANG), "--port-file", str(port), far_end.uds, "7")
    with serving("proxy", *arguments, before=["timeout", "2"]) as proxy, proxy.connect() as sock:
        sock.sendall(b"x")
        assert sock.recv(1) == b"x"
        time.sleep(2.5)
        sock.sendall(b"y")
        assert sock.recv(1) == b"y"


def test_nothing_of_the_proxy_outlives_it(far_end: FarEnd) -> None:
    words = service_command("proxy", far_end.uds, "7", "--", "sh", "-c", "echo ready; read line")
    with started(words) as proxy:
        assert proxy.stdout.readline() == b"ready\n"
        children = children_of(proxy.pid)
        proxy.kill()
        proxy.communicate(timeout=HANG)
        eventually(lambda: [pid for pid in children if is_alive(pid)], [])
    assert len(children) == 2, "the command and the witness of its signals"


def test_the_witness_keeps_nothing_open(far_end: FarEnd) -> None:
    ready, its_ready = os.pipe()
    words = service_command("proxy", "--ready-fd", str(its_ready), far_end.uds, "7", "--", "cat")
    with started(words, pass_fds=[its_ready]) as proxy, os.fdopen(ready) as reader:
        os.close(its_ready)
        assert reader.read().startswith("127.0.0.1:")  # up to its end of file
        proxy.communicate(timeout=HANG)
