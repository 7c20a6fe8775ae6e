"""The measures of memory and of an ordinary user: what is charged, and who is measured. No test says how much."""

import os
import pwd
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from support import HANG

pytest.importorskip("pyperf")
if not (shutil.which("cc") or shutil.which("gcc")):
    pytest.skip("the ends of the benchmarks are C programs", allow_module_level=True)

from bench.measures import MEASURES
from bench.memory_group import MemoryGroup
from bench.peers import PEERS, Peer
from bench.rig import take
from bench.sample import PeerError, Sample

ROOT = Path(__file__).parents[2]
MIB = 1 << 20
HOLDER = """
import socket, sys
near, far = socket.socketpair()
near.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4 << 20)
near.setblocking(False)
sys.stdin.readline()
for _ in range(30):
    try: near.send(bytes(65536))
    except BlockingIOError: break
print("full", flush=True)
sys.stdin.readline()
"""

HOARDER = """
import queue, socket, sys, threading
sock = socket.socket(socket.AF_UNIX)
sock.connect(sys.argv[1])
sock.sendall(b"CONNECT 9\\n")
while sock.recv(1) != b"\\n": pass
held = queue.SimpleQueue()
def read():
    while data := sys.stdin.buffer.read1(65536): held.put(data)
threading.Thread(target=read, daemon=True).start()
while True: sock.sendall(held.get())
"""


@contextmanager
def memory_group() -> Iterator[MemoryGroup]:
    """A group, or a skipped test where none can be made."""
    try:
        group = MemoryGroup()
    except OSError as error:
        pytest.skip(f"this machine: no memory cgroup can be made: {error}")
    try:
        yield group
    finally:
        group.remove()


def test_what_a_process_puts_into_a_socket_is_charged_to_its_group() -> None:
    """Though it is resident memory of nobody."""
    with memory_group() as group:
        command = [sys.executable, "-S", "-c", HOLDER]
        with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as child:
            assert child.stdin
            assert child.stdout
            group.add([child.pid])
            before = group.charged()
            child.stdin.write(b"\n")
            child.stdin.flush()
            assert child.stdout.readline() == b"full\n"
            assert group.charged() - before > MIB // 8
            child.stdin.close()
            assert child.wait(HANG) == 0


def test_a_process_that_has_ended_is_no_error() -> None:
    """It may end between being listed and being moved."""
    with memory_group() as group, subprocess.Popen(["true"]) as child:
        child.wait(HANG)
        group.add([child.pid])


def stalled(peer: Peer) -> Sample:
    """A sample of two stalled uploads of 32 MiB; `take` raises PeerError unless every byte arrives afterwards."""
    with memory_group():
        pass
    measure = next(m for m in MEASURES if m.kind == "stall" and peer.kind in m.kinds)
    return take(replace(measure, relays=2, size=64 * MIB), peer, check=True)


def test_what_a_forwarder_holds_for_a_guest_that_does_not_read_is_reported() -> None:
    """A forwarder that reads ahead without limit holds all of it, in memory that is both resident and charged."""
    sample = stalled(Peer("hoarder", "a hoarder", "stdio", lambda uds, port: [sys.executable, "-c", HOARDER, uds]))
    assert sample.charged is not None
    assert sample.resident is not None
    assert sample.charged > 32 * MIB
    assert sample.resident > 32 * MIB


@pytest.mark.parametrize("name", ["copy", "proxy"])
def test_a_stalled_upload_arrives_in_full_when_the_guest_reads_again(name: str) -> None:
    """Each way in which forwarders are started."""
    assert stalled(next(peer for peer in PEERS if peer.name == name)).seconds is None


def test_a_stall_without_a_memory_group_is_left_out_with_the_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    """In containers there often is none that can be written to."""

    def refuse(_: object) -> None:
        raise PermissionError("no")

    monkeypatch.setattr(MemoryGroup, "__init__", refuse)
    measure = next(m for m in MEASURES if m.kind == "stall")
    with pytest.raises(PeerError, match="no memory cgroup can be made: no"):
        take(measure, PEERS[0])


@pytest.mark.skipif(os.geteuid() != 0, reason="this machine: only root can change the user")
def test_as_another_user_every_process_is_that_users_and_root_returns() -> None:
    """For good in the programs that are started: none of their ids is root's."""
    script = """
import os, pwd, subprocess
from bench.user import acting_as
before = os.getresuid(), os.getresgid(), os.getgroups()
with acting_as(pwd.getpwnam("nobody")):
    print(subprocess.run(["sh", "-c", "grep -E '^(Uid|Gid|Groups)' /proc/self/status"], stdout=-1, text=True).stdout)
assert (os.getresuid(), os.getresgid(), os.getgroups()) == before
"""
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, timeout=HANG, check=True
    )
    nobody = pwd.getpwnam("nobody")
    ids = {line.split(":")[0]: line.split(":")[1].split() for line in done.stdout.splitlines() if line}
    assert ids == {"Uid": [str(nobody.pw_uid)] * 4, "Gid": [str(nobody.pw_gid)] * 4, "Groups": []}


def test_an_unknown_user_is_an_error_in_one_line(tmp_path: Path) -> None:
    """And so is any user for those who are not root."""
    done = subprocess.run(
        [sys.executable, "-m", "bench", "run", "--user", "no such user", "-o", str(tmp_path / "x.json")],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=HANG,
        check=False,
    )
    assert done.returncode == 1
    assert "'no such user'" in done.stderr
    assert done.stderr.count("\n") == 1
