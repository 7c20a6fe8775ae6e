"""Real ssh clients reach real ssh servers, with this program as their transport."""

import hashlib
import os
import random
import re
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from support import HANG, Listener, command, of_the_package, read_exactly, started
from support.services import eventually, is_alive
from support.ssh import DROPBEAR, NOBODY, Guest, need, shell_guest

BIG = 10_000_000
FDPASS = ("-o", "ProxyUseFdpass=yes")
Way = list[str]  # a client's command line, up to where the command goes


@pytest.fixture(scope="module")
def guest(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Guest]:
    """A guest with ssh servers."""
    with shell_guest(tmp_path_factory.mktemp("guest")) as guest:
        yield guest


WAYS = ["ProxyCommand", "ProxyCommand to dropbear", "fdpass", "dbclient -J", "dbclient on descriptor 3"]


@pytest.fixture(params=[*WAYS, "dbclient by proxy"])
def way(request: pytest.FixtureRequest, guest: Guest, engine: str) -> Way:
    """Each client with each transport; for fdpass it makes no difference which engine is not used."""
    if request.param == "dbclient on descriptor 3":
        return guest.direct()
    if request.param == "dbclient -J":
        return guest.jump(engine)
    if request.param == "dbclient by proxy":
        return guest.proxied(engine)
    need("ssh")
    if request.param == "ProxyCommand to dropbear":
        return guest.ssh(port=DROPBEAR, engine=engine)
    need("sshd")
    if request.param == "fdpass":
        return guest.ssh(*FDPASS, connect=("--fdpass",), engine=engine)
    return guest.ssh(engine=engine)


def in_guest(way: Way, command: str, stdin: bytes = b"") -> subprocess.CompletedProcess[bytes]:
    return subprocess.run([*way, command], input=stdin, capture_output=True, timeout=HANG, check=False)


def test_output_errors_and_exit_status_come_back(way: Way) -> None:
    done = in_guest(way, "echo out; echo error >&2; exit 7")
    assert (done.returncode, done.stdout) == (7, b"out\n"), done.stderr
    assert b"error\n" in done.stderr  # dbclient adds words of its own


def test_a_typed_line_is_answered_before_stdin_ends(way: Way) -> None:
    with started([*way, 'read line; echo "got $line"; cat >/dev/null; exit 5']) as client:
        client.stdin.write(b"hello\n")
        assert client.stdout.readline() == b"got hello\n"
        client.stdin.close()
        assert client.wait(HANG) == 5


def test_a_big_copy_arrives_and_returns_as_it_was(way: Way) -> None:
    payload = random.Random(5).randbytes(BIG)
    done = in_guest(way, "sha256sum", payload)
    assert done.stdout == hashlib.sha256(payload).hexdigest().encode() + b"  -\n"
    # The guest's shell waits until all has come: dropbear can hang when a child exits before (test_side_by_side.py).
    with started([*way, f"head -c {BIG} /dev/zero; echo $?; cat; exit 5"], stderr=subprocess.DEVNULL) as client:
        assert read_exactly(client.stdout.fileno(), BIG + 2) == bytes(BIG) + b"0\n"
        client.stdin.close()
        assert client.wait(HANG) == 5


def test_a_command_that_ends_ends_the_client_although_stdin_stays_open(way: Way) -> None:
    with started([*way, "exit 3"]) as client:
        assert client.wait(HANG) == 3


@pytest.mark.parametrize("options", [(), FDPASS], ids=["ProxyCommand", "fdpass"])
def test_a_reader_that_leaves_ends_the_remote_command_and_the_connection(
    guest: Guest, engine: str, options: tuple[str, ...]
) -> None:
    need("ssh", "sshd")
    connect = ("--fdpass",) if options else ()
    with started([*guest.ssh(*options, connect=connect, engine=engine), "echo $$; exec cat /dev/zero"]) as client:
        remote = int(client.stdout.readline())
        read_exactly(client.stdout.fileno(), 1_000_000)
        client.stdout.close()
        assert client.wait(HANG) == 255
        eventually(lambda: is_alive(remote), False)


@pytest.mark.parametrize("direct", [False, True], ids=["dbclient -J", "dbclient on descriptor 3"])
def test_dropbears_client_that_is_ended_after_its_reader_has_left_ends_the_remote_command(
    guest: Guest, engine: str, direct: bool
) -> None:
    way = guest.direct() if direct else guest.jump(engine)
    with started([*way, "echo $$; exec cat /dev/zero"]) as client:
        remote = int(client.stdout.readline())
        read_exactly(client.stdout.fileno(), 1_000_000)
        client.stdout.close()
        client.terminate()  # by itself it stays, whatever its transport: github.com/mkj/dropbear/issues/379
        eventually(lambda: is_alive(remote), False)


@of_the_package
def test_with_fdpass_no_forwarder_is_left_in_the_path(guest: Guest) -> None:
    need("ssh", "sshd")
    assert forwarders_while_a_session_runs(guest.ssh(*FDPASS, connect=("--fdpass",)), guest) == 0
    assert forwarders_while_a_session_runs(guest.ssh(), guest) == 1, "the look would find one"


@of_the_package
def test_with_descriptor_3_no_forwarder_is_left_in_the_path(guest: Guest) -> None:
    assert forwarders_while_a_session_runs(guest.direct(), guest) == 0
    assert forwarders_while_a_session_runs(guest.jump("auto"), guest) == 1, "the look would find one"


def forwarders_while_a_session_runs(way: Way, guest: Guest) -> int:
    with started([*way, "echo here; cat"]) as client:
        assert client.stdout.readline() == b"here\n"
        forwarders = sum(
            b"fastvsock.runcvm_vsock_connect" in words and b"-F" not in words for words in command_lines(guest)
        )
        client.stdin.close()
        assert client.wait(HANG) == 0
    return forwarders


def command_lines(guest: Guest) -> Iterator[list[bytes]]:
    """Those of the processes that have the guest's UDS as an argument."""
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = path.read_bytes().split(b"\0")
        except (FileNotFoundError, ProcessLookupError):
            continue
        if guest.uds.encode() in words:
            yield words


def test_fdpass_passes_the_connection_from_its_first_byte_of_payload_on(listener: Listener) -> None:
    ours, theirs = socket.socketpair()
    with ours, started(command("--fdpass", listener.uds, "22"), stdout=theirs.fileno()) as child:
        theirs.close()
        with listener.accept(b"OK 1073741824\nSSH-2.0-early") as guest:
            byte, fds, _, _ = socket.recv_fds(ours, 1, 1)
            assert (byte, child.wait(HANG), child.stderr.read()) == (b"\0", 0, b"")
            with socket.socket(fileno=fds[0]) as passed:
                assert passed.getblocking()
                assert os.get_blocking(passed.fileno())
                guest.sendall(b" and late")
                assert read_exactly(passed.fileno(), 22) == b"SSH-2.0-early and late"
                passed.sendall(b"answer")
                assert guest.recv(6) == b"answer"


def test_fdpass_to_what_takes_no_descriptor_is_reported_in_a_sentence(listener: Listener) -> None:
    with started(command("--fdpass", listener.uds, "22")) as child, listener.accept():
        assert child.wait(HANG) == 1
        said = child.stderr.read().decode()
    assert said.startswith("fastvsock: --fdpass cannot pass the connection over stdout")
    assert said.count("\n") == 1


def test_a_guest_that_refuses_is_reported_by_the_client(guest: Guest) -> None:
    need("ssh")
    for way in (guest.ssh(port=NOBODY), guest.ssh(*FDPASS, port=NOBODY, connect=("--fdpass",))):
        done = in_guest(way, "true")
        assert done.returncode == 255
        assert re.search(rb"fastvsock: .* guest port 1999 refused", done.stderr)
