"""Whose connections a proxy with a command serves: its command's, and no stranger's."""

import os
import re
import socket
import sys
from pathlib import Path

import pytest

from fastvsock.services import ownership
from fastvsock.services.connection import Connection
from support import HANG, started
from support.services import FarEnd, connect, receive, service_command

CONNECTED = "import os, socket, sys; s = socket.create_connection(('127.0.0.1', int(sys.argv[1])))\n"
ASK = CONNECTED + "s.sendall(b'ask'); print(s.recv(3).decode() or 'closed', flush=True)"


def test_a_strangers_connection_is_closed_and_reported(far_end: FarEnd, where: str, tmp_path: Path) -> None:
    port_file = tmp_path / "port"
    command = ("sh", "-c", "echo ready; read line")
    arguments = ("--listen", where, "--port-file", str(port_file), far_end.uds, "7", "--", *command)
    with started(service_command("proxy", *arguments)) as child:
        assert child.stdout.readline() == b"ready\n"
        text = port_file.read_text().strip()
        address = f"unix:{text}" if text.startswith("/") else where.removesuffix("0") + text
        with connect(address) as sock:
            try:
                assert receive(sock) == b""
            except ConnectionResetError:
                pass
        assert far_end.held == 0
        child.stdin.write(b"\n")
        _, said = child.communicate(timeout=HANG)
        assert child.returncode == 0
        assert re.fullmatch(rb"fastvsock: .*: " + ownership.STRANGER.encode() + rb"\n", said)


@pytest.mark.parametrize(
    "script",
    [
        'exec "$0" -c "$1" "$2"',
        '( "$0" -c "$1" "$2" ); :',
        '( ( sleep 0.1; exec "$0" -c "$1" "$2" ) & ); sleep 0.05; read line',
        '( setsid sh -c "sleep 0.1; exec \\"\\$0\\" -c \\"\\$1\\" \\$2" "$0" "$1" "$2" & ); read line',
    ],
    ids=["child", "grandchild", "orphan", "orphan in a session of its own"],
)
def test_a_descendants_connection_is_served(far_end: FarEnd, script: str) -> None:
    words = service_command("proxy", far_end.uds, "7", "--", "sh", "-c", script, sys.executable, ASK, "{port}")
    with started(words) as child:
        assert child.stdout.readline() == b"ask\n"
        child.communicate(b"\n", timeout=HANG)
        assert child.returncode == 0


def test_where_a_descendant_cannot_be_looked_into_its_user_decides(monkeypatch: pytest.MonkeyPatch) -> None:
    family = ownership.Family()
    with (
        started(["sleep", str(HANG)]),
        socket.create_server(("127.0.0.1", 0)) as server,
        socket.create_connection(server.getsockname()),
    ):
        sock, _ = server.accept()
        connection = Connection(sock, "this process' own")
        assert family.reject_reason(connection) == ownership.STRANGER, "for it is its parent's, not sleep's"
        monkeypatch.setattr(ownership, "has_open", lambda pid, inode: None)
        assert not family.reject_reason(connection)
        monkeypatch.setattr(ownership, "users_of", lambda pid: {os.getuid() + 1})
        assert family.reject_reason(connection) == ownership.STRANGER
        sock.close()
