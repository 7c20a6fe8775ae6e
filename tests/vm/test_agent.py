"""`fastvsock agent` in a real guest, where it is the static binary, beside no Python: whom it serves, how it ends."""

import hashlib
import os
import subprocess
import uuid
from contextlib import ExitStack

import pytest

import fastvsock
from support import ENGINES, HANG, read_exactly, started
from support.channels import REAL_GUEST as GUEST
from support.channels import Guest, exec_in, executing, within

pytestmark = pytest.mark.skipif(not GUEST.uds, reason="by design: runs inside the VM harness")

ENDED = "fastvsock: the connection to the guest's agent ended early"
STUBBORN = "trap '' HUP TERM INT; (trap '' HUP TERM; while :; do sleep 0.1; done) & while :; do sleep 0.1; done"
# A connection from the guest itself to port $1, and what comes from there.
LOCAL = "echo 'GET / HTTP/1.1' | socat -t 10 - VSOCK-CONNECT:1:$1 | wc -c"


def said(script: str, *words: str) -> bytes:
    """What a script prints in the guest, where it must end well."""
    done = exec_in(GUEST, "sh", "-c", script, "sh", *words)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def processes_with(mark: str) -> int:
    """How many processes in the guest have `mark` in their words."""
    table = said("ps -o args")
    return sum(mark.encode() in line for line in table.splitlines())


def test_the_agent_is_the_static_binary_and_there_is_no_python() -> None:
    assert said("readlink /proc/$PPID/exe; ls /bin /usr/bin | grep -c python; :") == b"/.runcvm/guest/bin/fastvsock\n0"
    assert fastvsock.Guest(GUEST.uds).info()["version"] == fastvsock.__version__


def test_it_serves_its_host_and_nobody_else() -> None:
    """The guest itself is CID 1. An agent that may serve that one shows that such connections arrive."""
    assert said(LOCAL, "721") == b"0"
    assert b"refused a connection of CID 1: only 2 may" in said("tail -n 1 /tmp/agent.log")
    with executing(GUEST, "fastvsock", "agent", "--port", "722", "--allow-cid", "1") as other:
        assert other.stdout.readline() == b"listening on vsock:722\n"
        assert int(said(LOCAL, "722")) > 0, "a refusal in the protocol's words"
        assert exec_in(GUEST, "true", options=["--port", "722"]).returncode == 125
    assert exec_in(GUEST, "true").returncode == 0


def test_a_forward_leads_to_a_port_inside_the_guest() -> None:
    with fastvsock.connect(GUEST.uds, 2022) as ssh:
        ssh.settimeout(HANG)
        assert ssh.recv(100).startswith(b"SSH-2.0-dropbear")


@pytest.mark.parametrize("script", ["sleep 1000; true", STUBBORN, "kill -STOP $$", "yes"])
def test_a_client_that_is_killed_leaves_no_process_behind(engine: str, script: str) -> None:
    mark = uuid.uuid4().hex
    with executing(GUEST, "sh", "-c", f"echo begun; {script}", mark, options=["-i"], engine=engine) as child:
        assert child.stdout.readline() == b"begun\n"
        assert processes_with(mark)
        child.kill()
        child.wait(HANG)
        assert within(HANG, lambda: not processes_with(mark))


def test_20_at_the_same_time_do_not_mix(engine: str) -> None:
    """Each command waits for the others to be there, and then gives back what it is given."""
    together = f"/tmp/{uuid.uuid4().hex}"
    said("mkfifo $1", together)
    script = 'echo here; : <"$0"; exec cat'
    payloads = [os.urandom(1000) * 60 for _ in range(20)]
    with ExitStack() as running:
        children = [
            running.enter_context(executing(GUEST, "sh", "-c", script, together, options=["-i"], engine=engine))
            for _ in payloads
        ]
        assert [child.stdout.readline() for child in children] == [b"here\n"] * 20
        with executing(GUEST, "sh", "-c", "exec 3<>$0; read line", together, options=["-i"]):
            for child, payload in zip(children, payloads, strict=True):
                child.stdin.write(payload)
                child.stdin.close()
            outputs = [read_exactly(child.stdout.fileno(), 1 << 20) for child in children]
        assert [child.wait(HANG) for child in children] == [0] * 20
    assert list(map(digest, outputs)) == list(map(digest, payloads))
    said("rm $1", together)


def digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def test_an_agent_that_is_killed_is_125_and_its_successor_serves(engine: str) -> None:
    with executing(GUEST, "sh", "-c", "echo $$; exec sleep 1000", engine=engine) as child:
        pid = child.stdout.readline().decode()
        exec_in(GUEST, "killall", "-9", "fastvsock")
        assert child.wait(HANG) == 125
        said = child.stderr.read().decode()
    assert said.startswith(ENDED)
    assert f", after 0 bytes up and {len(pid)} down: " in said
    assert exec_in(GUEST, "kill", "-9", pid.strip(), options=["--wait", "30"], engine=engine).returncode == 0


def test_a_vmm_that_is_killed_in_mid_stream_is_125(booting: tuple[str, list[str]]) -> None:
    """`exec` begins before there is a VMM, and waits for the guest to be up."""
    uds, boot = booting
    guest = Guest(uds, None)  # type: ignore[arg-type]  # as REAL_GUEST
    quiet = {"stdin": subprocess.DEVNULL, "stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    with ExitStack() as running:
        children = [
            running.enter_context(executing(guest, "yes", options=["--wait", "60"], engine=engine))
            for engine in ENGINES
        ]
        vmm = running.enter_context(started(boot, **quiet))
        for child in children:
            assert read_exactly(child.stdout.fileno(), 100_000)
        vmm.kill()
        for child in children:
            read_exactly(child.stdout.fileno(), 1 << 30)
            assert child.wait(HANG) == 125
            assert child.stderr.read().decode().startswith(ENDED)
