"""The binary where a container engine forbids system calls: Docker's default seccomp profile."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from support import ECHO, HANG, Endpoint
from support.channels import Guest, agent_on

SIZE = 1_000_000
LOOK = """
import ctypes, errno
libc = ctypes.CDLL(None, use_errno=True)
for call in ({calls}):
    print(libc.syscall(*call), errno.errorcode.get(ctypes.get_errno()))
"""


@pytest.fixture(scope="module")
def confined() -> list[str]:
    """The words before a command that put it under the profile."""
    if os.uname().machine != "x86_64":
        pytest.skip("by design: the numbers of the system calls are those of x86_64")
    words = [sys.executable, "-m", "support.seccomp"]
    if subprocess.run([*words, "true"], cwd=Path(__file__).parents[1], timeout=HANG, check=False).returncode:
        pytest.skip("this machine: no seccomp filter can be set")
    return words


@pytest.fixture(autouse=True)
def in_tests(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where `support` is found by a new Python."""
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[1]))


@pytest.fixture(scope="module")
def guest(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Guest]:
    """An agent, not confined."""
    with agent_on(tmp_path_factory.mktemp("agent") / "agent.sock") as found:
        yield found


def test_the_profile_refuses_what_dockers_does(confined: list[str]) -> None:
    calls = {"unshare": (272, 0), "userfaultfd": (323, 0), "clone3": (435, 0, 0), "no such call": (9999,)}
    calls |= {"a namespace": (56, 0x10000000, 0), "AF_VSOCK": (41, 40, 1, 0), "AF_UNIX": (41, 1, 1, 0)}
    code = LOOK.format(calls=", ".join(map(str, calls.values())))
    words = [*confined, sys.executable, "-c", code]
    done = subprocess.run(words, capture_output=True, text=True, timeout=HANG, check=True)
    seen = [line.split()[-1] if line.startswith("-1") else "allowed" for line in done.stdout.splitlines()]
    assert seen == ["EPERM", "EPERM", "ENOSYS", "ENOSYS", "EPERM", "EPERM", "allowed"]


def test_connect_moves_every_byte_under_it(confined: list[str], connect: Path, endpoint: Endpoint, engine: str) -> None:
    data = os.urandom(SIZE)
    words = [*confined, str(connect), "--engine", engine, "--stats", endpoint.uds, str(ECHO)]
    done = subprocess.run(words, input=data, capture_output=True, timeout=HANG, check=False)
    assert (done.returncode, done.stdout) == (0, data)
    assert done.stderr.count(f", {engine}".encode()) == 2


def test_exec_runs_a_command_under_it(confined: list[str], fastvsock: Path, guest: Guest, engine: str) -> None:
    data = os.urandom(SIZE)
    words = [*confined, str(fastvsock), "exec", "-i", "--engine", engine, "--stats", guest.uds, "cat"]
    done = subprocess.run(words, input=data, capture_output=True, timeout=HANG, check=False)
    assert (done.returncode, done.stdout) == (0, data)
    assert done.stderr.count(f", {engine}".encode()) == 2


def test_every_other_command_starts_under_it(confined: list[str], fastvsock: Path, tmp_path: Path) -> None:
    words = [*confined, str(fastvsock), "cp", "--help"]
    done = subprocess.run(words, capture_output=True, timeout=HANG, check=False)
    assert (done.returncode, done.stderr) == (0, b"")
