"""`fastvsock doctor UDS 721` asks the agent."""

import json
import subprocess

import fastvsock
from fastvsock.channels import protocol
from support import HANG, Listener, started
from support.channels import Guest, Peer, umbrella, within


def ask(guest: Guest) -> str:
    """What doctor says of the agent."""
    done = subprocess.run(
        umbrella("doctor", guest.uds, "721", "--json"), capture_output=True, timeout=HANG, check=False
    )
    found = {finding["check"]: finding for finding in json.loads(done.stdout)}
    assert found["agent"]["state"] == "ok"
    return str(found["agent"]["text"])


def test_doctor_asks_the_agent(guest: Guest, engine: str) -> None:
    text = ask(guest)
    assert text.startswith(f"fastvsock agent {fastvsock.__version__} on ")
    assert text.endswith(f" ms; this is fastvsock {fastvsock.__version__}")
    # The connection with which doctor tried the port may be about to end, on a busy machine.
    assert within(HANG, lambda: f"engine {engine}, 1 channels open, answered in " in ask(guest))


def test_doctor_finds_an_agent_that_is_none_and_one_of_another_release(listener: Listener) -> None:
    for answer, state in ((b"SSH-2.0-x\r\n", "failed"), (protocol.started([b"version=9\x1b"]), "warning")):
        with started(umbrella("doctor", listener.uds, "721", "--json")) as child:
            listener.accept().close()
            with listener.accept() as sock:
                Peer(sock).receive()
                sock.sendall(answer + protocol.exited(0))
                out, _ = child.communicate(timeout=HANG)
        found = {finding["check"]: finding for finding in json.loads(out)}
        assert found["agent"]["state"] == state
