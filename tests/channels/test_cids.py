"""Whom `fastvsock agent` serves: its host, CID 2, or the CIDs of --allow-cid."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

import fastvsock
from support import HANG, started

# The real command, whose AF_VSOCK socket is a Unix socket, and whose peers have the CID that the test says.
AGENT = """
import _socket, os, sys
from fastvsock.agent import server
from fastvsock.cli import agent

class Listener(_socket.socket):
    def _accept(self):
        return super()._accept()[0], (int(os.environ["CID"]), 1024)

def open_vsock(port):
    listener = Listener(_socket.AF_UNIX)
    listener.bind(os.environ["UDS"])
    listener.listen()
    listener.setblocking(False)
    return listener

server.open_vsock = open_vsock
_socket.AF_VSOCK = _socket.AF_UNIX
sys.exit(agent.main(sys.argv[1:]))
"""


@pytest.mark.parametrize(
    ("options", "cid", "served"),
    [
        ([], 2, ""),
        ([], 1, "2"),
        ([], 3, "2"),
        (["--allow-cid", "3"], 3, ""),
        (["--allow-cid", "3"], 2, "3"),
        (["--allow-cid", "16", "--allow-cid=4294967294"], 4294967294, ""),
        (["--allow-cid", "16", "--allow-cid=1"], 2, "1, 16"),
    ],
)
def test_peers_are_served_by_their_cid(options: list[str], cid: int, served: str, tmp_path: Path) -> None:
    uds = tmp_path / "agent.sock"
    environment = {**os.environ, "UDS": str(uds), "CID": str(cid)}
    with started([sys.executable, "-c", AGENT, *options], env=environment, stdin=subprocess.DEVNULL) as child:
        assert child.stdout.readline() == b"listening on vsock:721\n"
        guest = fastvsock.Guest(uds)
        if not served:
            assert guest.run(["echo", "served"], capture_output=True).stdout == b"served\n"
            return
        with pytest.raises(fastvsock.FastvsockError):
            guest.info()
        child.terminate()
        child.wait(HANG)
        assert child.stderr.read() == f"fastvsock: refused a connection of CID {cid}: only {served} may\n".encode()
