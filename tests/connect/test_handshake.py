"""The handshake of the real command, with the test as the VMM: one write, and no payload eaten."""

import shutil
import subprocess
from pathlib import Path

import pytest

from support import HANG, Listener, command, connecting, pattern, read_exactly, started

PORT = 5003


@pytest.mark.parametrize("size", [1, 2, 13, 14, 15, 4096, 65536, 100_000])
def test_bytes_behind_the_handshake_line_are_payload(size: int, listener: Listener, engine: str) -> None:
    payload = pattern(size)
    with connecting(listener.uds, PORT, engine=engine) as child:
        listener.accept(b"OK 1073741824\n" + payload).close()  # one send, so one segment
        out, err = child.communicate(timeout=HANG)
    assert (child.returncode, err) == (0, b"")
    assert out == payload


def test_a_reply_that_arrives_byte_by_byte_is_understood(listener: Listener, engine: str) -> None:
    with connecting(listener.uds, PORT, engine=engine) as child:
        with listener.accept(b"") as connection:
            for byte in b"OK 1073741824\npayload":
                connection.sendall(bytes([byte]))
        out, err = child.communicate(timeout=HANG)
    assert (child.returncode, out, err) == (0, b"payload", b"")


@pytest.mark.parametrize("port", [0, 7, 4294967295])
def test_the_connect_line_leaves_in_one_write(port: int, listener: Listener, tmp_path: Path) -> None:
    strace = shutil.which("strace")
    if not strace:
        pytest.skip("no strace(1) here, by which to see the system calls")
    log = tmp_path / "calls"
    trace = [strace, "-f", "-qq", "-e", "trace=connect,write,writev,sendto,sendmsg,sendmmsg", "-o", str(log)]
    if subprocess.run([*trace, "true"], capture_output=True, timeout=HANG, check=False).returncode:
        pytest.skip("this machine: strace(1) may not trace")
    with started([*trace, *command(listener.uds, str(port))]) as child:
        listener.accept().close()
        assert child.wait(HANG) == 0
    calls = log.read_text().partition(listener.uds)[2].splitlines()[1:]
    sent = [call for call in calls if "CONN" in call or "ECT" in call]
    line = f'"CONNECT {port}\\n"'
    assert len(sent) == 1, calls
    assert line in sent[0]
    assert sent[0].endswith(f"= {len(line) - 3}")
    assert calls[0] == sent[0], calls  # and nothing before it


@pytest.mark.parametrize("stdin", [b"", b"payload from the first moment on"])
def test_the_connect_line_is_exact_and_stdin_comes_behind_the_reply(stdin: bytes, listener: Listener) -> None:
    with connecting(listener.uds, PORT) as child:
        child.stdin.write(stdin)
        with listener.accept(b"") as connection:  # takes bytes up to the newline
            connection.settimeout(0.2)
            with pytest.raises(TimeoutError):
                connection.recv(1)  # a guest that refuses must not have got any of it
            connection.setblocking(True)
            connection.sendall(b"OK 1073741824\n")
            assert read_exactly(connection.fileno(), len(stdin)) == stdin
        assert child.wait(HANG) == 0
