"""The chain of production, whole: ssh client, connect program, Firecracker, socat and dropbear in the guest.

Theory of operation: RunCVM reaches its guest by dropbear's `dbclient`, whose transport is our
`runcvm-vsock-connect`. There are two routes, and each test here takes both: `jump`, where dbclient runs the connect
program itself (-J), and `proxy`, where a socat listens on a TCP port and runs one connect program a connection, as
RunCVM does today. `kubectl cp` is a `tar` on either side of that. These tests run in L1 of the VM harness (run.py);
a session costs 2 to 3 s there and a megabyte about 3 s, so sizes are modest.
"""

from __future__ import annotations

import hashlib
import os
import random
import socket
import subprocess
import sys
import tarfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from support import read_exactly, started, write_all
from support.ssh import output, until_status

pytestmark = [
    pytest.mark.skipif(not os.environ.get("FASTVSOCK_VM"), reason="by design: runs inside the VM harness"),
    pytest.mark.timeout(300),
]

UDS = os.environ.get("FASTVSOCK_TEST_UDS", "")
KEY = os.environ.get("FASTVSOCK_TEST_KEY", "")
CONNECT = os.environ.get("FASTVSOCK_TEST_CONNECT") or str(Path(sys.executable).parent / "runcvm-vsock-connect")
TRANSPORT = f"{CONNECT} {UDS} 22"
SESSION_SECONDS = 60
COPY_SECONDS = 120
LEAVE_SECONDS = 30
MEGABYTE = 1_000_000
# Of each the listener and the one that serves the session that looks.
IDLE_GUEST = ["dropbear", "dropbear", "socat", "socat"]

Route = list[str]  # the words of a command line, to which the guest's command is added


@pytest.fixture(params=["jump", "proxy"])
def route(request: pytest.FixtureRequest) -> Iterator[Route]:
    client = ["dbclient", "-y", "-y", "-i", KEY]
    if request.param == "jump":
        yield [*client, "-J", TRANSPORT, "root@guest"]
        return
    port = free_port()
    listen = f"TCP-LISTEN:{port},bind=127.0.0.1,reuseaddr,fork"
    with started(["socat", listen, f'EXEC:"{TRANSPORT}"'], stdin=None, stdout=None, stderr=None):
        eventually(lambda: is_listening(port), True)
        yield [*client, "-p", str(port), "root@127.0.0.1"]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def is_listening(port: int) -> bool:
    """Look it up: a connection to find out would start a connect program."""
    return f"0100007F:{port:04X} 00000000:0000 0A" in Path("/proc/net/tcp").read_text()


def eventually(look: Callable[[], object], expected: object, seconds: float = LEAVE_SECONDS) -> None:
    deadline = time.monotonic() + seconds
    while (seen := look()) != expected:
        assert time.monotonic() < deadline, f"still {seen} after {seconds} s, not {expected}"
        time.sleep(0.2)


def in_guest(route: Route, command: str) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run([*route, command], input=b"", capture_output=True, timeout=SESSION_SECONDS, check=False)


def check_in_guest(route: Route, command: str) -> bytes:
    done = in_guest(route, command)
    assert done.returncode == 0, done.stderr.decode()
    return done.stdout


def test_output_errors_and_exit_status_come_back(route: Route) -> None:
    done = in_guest(route, "echo out; echo error >&2; exit 7")
    assert (done.returncode, done.stdout) == (7, b"out\n")
    assert b"error\n" in done.stderr  # dbclient adds words of its own


def test_every_byte_of_stdin_arrives_and_returns(route: Route) -> None:
    payload = bytes(range(256)) * 800
    with started([*route, "cat"], stderr=None) as client:
        feeder = threading.Thread(target=write_all, args=(client.stdin.fileno(), payload))
        feeder.start()
        assert read_exactly(client.stdout.fileno(), len(payload)) == payload
        feeder.join()
        client.stdin.close()  # not before: see until_status
        assert client.stdout.read() == b""
        assert client.wait(SESSION_SECONDS) == 0


def test_a_typed_line_is_answered_before_stdin_ends(route: Route) -> None:
    with started([*route, 'read line; echo "got $line"; cat >/dev/null'], stderr=None) as client:
        client.stdin.write(b"hello\n")
        assert client.stdout.readline() == b"got hello\n"
        client.stdin.close()
        assert client.wait(SESSION_SECONDS) == 0


def test_a_command_that_ends_ends_the_client_although_stdin_stays_open(route: Route) -> None:
    with started([*route, "exit 3"], stderr=None) as client:
        assert client.wait(SESSION_SECONDS) == 3


def test_four_sessions_at_once_do_not_mix(route: Route) -> None:
    payloads = [bytes([65 + number]) * 50_000 for number in range(4)]
    with ExitStack() as running:
        clients = [running.enter_context(started([*route, "cat"], stderr=subprocess.DEVNULL)) for _ in payloads]
        for client, payload in zip(clients, payloads, strict=True):
            client.stdin.write(payload)  # less than pipe and window hold: does not block
        assert [read_exactly(client.stdout.fileno(), len(payloads[0])) for client in clients] == payloads
        for client in clients:
            client.stdin.close()
        assert [client.wait(SESSION_SECONDS) for client in clients] == [0, 0, 0, 0]
        assert [client.stdout.read() for client in clients] == [b""] * 4


def test_a_tree_goes_in_and_comes_back_as_it_was(route: Route, tmp_path: Path) -> None:
    there, back = tmp_path / "there", tmp_path / "back"
    make_tree(there, 2 * MEGABYTE + 1)
    back.mkdir()
    folder = f"/tmp/{tmp_path.name}"

    pipe(["tar", "cf", "-", "-C", str(there), "."], [*route, f"mkdir {folder} && tar xmf - -C {folder}"])
    sums = check_in_guest(route, f"cd {folder} && find . -type f -exec sha256sum {{}} +")
    assert sorted(sums.split(b"\n")) == sorted(sha256sums(there).split(b"\n"))

    with started([*route, until_status(f"tar cf - -C {folder} .")], stderr=None) as client:
        archive = output(client, 0)
        client.stdin.close()
        assert client.wait(SESSION_SECONDS) == 0
    subprocess.run(["tar", "xf", "-", "-C", str(back)], input=archive, check=True)
    assert described(back) == described(there)
    check_in_guest(route, f"rm -rf {folder}")


def make_tree(top: Path, big: int) -> None:
    noise = random.Random(1)
    for number in range(150):
        path = top / f"small/{number % 7}/{number}"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(noise.randbytes(number * 17))
    for name in ("with  spaces ", "two\nlines", "ünïcödé-日本", "-rf", "--help", "*", "'\"$(x)\\", ".hidden"):
        (top / name).write_text(name)
    (top / "big").write_bytes(noise.randbytes(big))
    (top / "empty folder").mkdir()
    for mode in (0o400, 0o644, 0o755, 0o4711):
        (top / f"mode {mode:o}").write_text("")
        (top / f"mode {mode:o}").chmod(mode)
    (top / "link").symlink_to("small/1/1")
    (top / "dangling link").symlink_to("/nowhere/at all")


def pipe(source: list[str], sink: list[str]) -> None:
    """Run `source | sink`; both must succeed."""
    with (
        started(source, stdin=subprocess.DEVNULL, stderr=None) as first,
        started(sink, stdin=first.stdout, stdout=None, stderr=None) as second,
    ):
        first.stdout.close()  # so that the source sees it when the sink ends early
        assert (second.wait(COPY_SECONDS), first.wait(COPY_SECONDS)) == (0, 0)


def sha256sums(top: Path) -> bytes:
    """What busybox's `find . -type f -exec sha256sum {} +` prints in that folder, in some order."""
    lines = []
    for path in files(top):
        name = os.fsencode(path.relative_to(top))
        lines.append(hashlib.sha256(path.read_bytes()).hexdigest().encode() + b"  ./" + name + b"\n")
    return b"".join(lines)


def files(top: Path) -> list[Path]:
    return [path for path in top.rglob("*") if path.is_file() and not path.is_symlink()]


def described(top: Path) -> dict[str, tuple[int, str]]:
    """Name to mode and content (a link's: its target) of everything in a tree."""
    found = {}
    for path in top.rglob("*"):
        content = ""
        if path.is_symlink():
            content = os.readlink(path)
        elif path.is_file():
            content = hashlib.sha256(path.read_bytes()).hexdigest()
        found[str(path.relative_to(top))] = (path.lstat().st_mode, content)
    return found


def test_a_client_killed_in_mid_copy_leaves_nothing_behind(route: Route, tmp_path: Path) -> None:
    idle = ["socat"] if "-p" in route else []
    eventually(processes_on_host, idle)  # what earlier tests had may be on its way out
    eventually(lambda: processes_in_guest(route), IDLE_GUEST)

    archive, folder = tmp_path / "archive.tar", f"/tmp/{tmp_path.name}"
    (tmp_path / "big").write_bytes(random.Random(2).randbytes(30 * MEGABYTE))  # a minute and more: it will be killed
    with tarfile.open(archive, "w") as tar:
        tar.add(tmp_path / "big", "big")
    with (
        archive.open("rb") as stdin,
        started(
            [*route, f"mkdir {folder}; exec tar xmf - -C {folder}"], stdin=stdin, stdout=None, stderr=None
        ) as client,
    ):
        check_in_guest(route, f"until [ -s {folder}/big ]; do sleep 0.2; done")
        assert client.poll() is None
        assert "tar" in processes_in_guest(route)
        client.kill()

    eventually(processes_on_host, idle)
    eventually(sockets_on_host, 1)  # the one that Firecracker listens on
    eventually(lambda: processes_in_guest(route), IDLE_GUEST)
    check_in_guest(route, f"rm -rf {folder}")


@pytest.mark.parametrize("route", ["jump"], indirect=True)
def test_a_client_that_is_ended_after_its_reader_has_left_ends_the_guests_command(route: Route) -> None:
    with started([*route, "exec cat /dev/zero"], stderr=subprocess.DEVNULL) as client:
        read_exactly(client.stdout.fileno(), 100_000)
        client.stdout.close()
        client.terminate()  # by itself dbclient stays, whatever its transport: github.com/mkj/dropbear/issues/379
        eventually(processes_on_host, [])
    eventually(lambda: processes_in_guest(route), IDLE_GUEST)


def processes_on_host() -> list[str]:
    """The programs that run the connect program, or are it."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if CONNECT.encode() in (folder / "cmdline").read_bytes():
                found.append((folder / "comm").read_text().strip())
        except (FileNotFoundError, ProcessLookupError):
            continue
    return sorted(found)


def sockets_on_host() -> int:
    return Path("/proc/net/unix").read_text().count(f" {UDS}\n")


def processes_in_guest(route: Route) -> list[str]:
    """The guest's processes of the chain, this look's own always among them."""
    table = check_in_guest(route, "ps -o comm").decode().split()
    return sorted(name for name in table if name in {"dropbear", "socat", "tar"})
