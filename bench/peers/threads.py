"""The transport that RunCVM ships today, rewritten: two Python threads around buffered files, defects included.

    python threads.py UDS PORT

For measurements only. D1: `read(32768)` on a buffered file waits for all 32 KiB or the end.
D2: when the guest closes, the thread on stdin stays blocked. D3: at the end of stdin it exits at once, and what
has not come down yet is lost. D4: neither argument is checked.
"""

import os
import socket
import sys
import threading

SIZE = 32768


def main() -> None:
    """Join stdin and stdout to a port."""
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    sock.connect(sys.argv[1])
    sock.sendall(f"CONNECT {sys.argv[2]}\n".encode())
    line = b""
    while not line.endswith(b"\n"):
        line += sock.recv(1)
    if not line.startswith(b"OK"):
        raise SystemExit(line.decode())
    down = threading.Thread(target=to_stdout, args=(sock,), daemon=True)
    down.start()
    to_socket(sock)
    sys.stdout.buffer.flush()
    os._exit(0)


def to_socket(sock: socket.socket) -> None:
    """From stdin until its end."""
    while data := sys.stdin.buffer.read(SIZE):
        sock.sendall(data)


def to_stdout(sock: socket.socket) -> None:
    """From the socket until its end."""
    while data := sock.recv(SIZE):
        sys.stdout.buffer.write(data)
        sys.stdout.buffer.flush()


if __name__ == "__main__":
    main()
