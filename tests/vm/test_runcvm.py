"""RunCVM's init script as `install` edits it has started the agent of a real guest, and leads to a real dropbear."""

import os
import subprocess

import pytest

import fastvsock
from support import HANG, command
from support.channels import REAL_GUEST as GUEST
from support.channels import exec_in, executing

pytestmark = pytest.mark.skipif(not GUEST.uds, reason="by design: runs inside the VM harness")

DROPBEAR = b"SSH-2.0-dropbear"
# The script in a guest whose root file system has no binary of ours, on a port that nobody else has.
WITHOUT_BINARY = """
sed 's#/.runcvm/guest/bin/fastvsock#/nowhere#; s/VSOCK-LISTEN:2022/VSOCK-LISTEN:23/' /runcvm-init | sh
exec sleep 1000
"""


def log_in(port: int, *words: str) -> subprocess.CompletedProcess[bytes]:
    """Run a command in the guest by dbclient, as RunCVM's exec script does, through a port of the guest."""
    client = ["dbclient", "-y", "-y", "-i", os.environ["FASTVSOCK_TEST_KEY"], "-J", "&3", "root@guest", *words]
    words_of_all = [*command(GUEST.uds, str(port)), "--", *client]
    return subprocess.run(words_of_all, input=b"", capture_output=True, timeout=2 * HANG, check=False)


def first_words(port: int) -> bytes:
    """What a port of the guest says first."""
    with fastvsock.connect(GUEST.uds, port, wait=HANG) as connection:
        connection.settimeout(HANG)
        return connection.recv(len(DROPBEAR))


def test_dbclient_logs_in_through_the_agents_forward() -> None:
    done = log_in(2022, "echo here; exit 3")
    assert (done.returncode, done.stdout) == (3, b"here\n"), done.stderr


def test_an_agent_that_is_killed_is_started_again_and_so_is_its_forward() -> None:
    pid = exec_in(GUEST, "sh", "-c", "echo $PPID; kill -9 $PPID")
    assert pid.returncode == 125
    after = exec_in(GUEST, "sh", "-c", "echo $PPID", options=["--wait", "30"])
    assert (after.returncode, after.stdout.strip().isdigit()) == (0, True), after.stderr
    assert after.stdout != pid.stdout
    assert first_words(2022) == DROPBEAR


def test_a_guest_without_the_binary_has_socat_there() -> None:
    with executing(GUEST, "sh", "-c", WITHOUT_BINARY):
        assert first_words(23) == DROPBEAR
        assert b"VSOCK-LISTEN:23" in exec_in(GUEST, "ps", "-o", "args").stdout
