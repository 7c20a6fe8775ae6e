"""A thousand idle relays of an ordinary user leave every other pipe of that user as it would be without them."""

import os
import subprocess
import sys

import pytest

from support import HANG

USER = 54321  # no other process has this user, so its pages are this test's alone

# 1,000 relays between sockets, each of which has moved a word each way and is silent now.
IDLE = """
import fcntl, os, resource, socket, sys, threading, time
import fastvsock.engines._copy  # what an ordinary user may not read of the interpreter is loaded before
from fastvsock.relaying import Relay
hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
Relay(socket.socketpair()[0], 0, 1, engine=sys.argv[1])
os.setuid(int(sys.argv[2]))
threading.stack_size(1 << 18)
kept, relays = [], []
for _ in range(1000):
    sock, guest = socket.socketpair()
    near, client = socket.socketpair()
    near.setblocking(False)
    relay = Relay(sock, near.fileno(), near.fileno(), engine=sys.argv[1])
    threading.Thread(target=relay.run).start()
    kept.append((sock, guest, near, client))
    relays.append(relay)
for sock, guest, near, client in kept:
    client.send(b"u"), guest.send(b"d"), guest.recv(1), client.recv(1)
deadline = time.monotonic() + 60
while True:
    pipes = [os.pipe() for _ in range(50)]
    sizes = {fcntl.fcntl(fd, fcntl.F_GETPIPE_SZ) for fd, _ in pipes}
    for ends in pipes:
        os.close(ends[0]), os.close(ends[1])
    if sizes == {65536} or time.monotonic() > deadline:
        break
    time.sleep(0.1)
print(*sizes)
for relay in relays:
    relay.stop()
"""


@pytest.mark.skipif(os.getuid() != 0, reason="only root becomes another user (by design)")
def test_a_thousand_idle_relays_leave_a_users_pipes_at_their_size(engine: str) -> None:
    words = [sys.executable, "-c", IDLE, engine, str(USER)]
    done = subprocess.run(words, capture_output=True, timeout=2 * HANG, check=False)
    assert (done.stdout, done.stderr) == (b"65536\n", b"")
