"""How a service closes a socket: with care, since closing may take away what the peer has not read yet.

Closing a TCP socket with unread input sends a reset, and a reset discards what the peer has not read yet (RFC 2525,
2.17); a Unix socket's peer, a VMM perhaps, gets ECONNRESET instead of an end of file. So `hang_up` half-closes, and
reads on until the peer closes as well, or has read everything and been silent for a while. A peer that reads nothing at
all is given up after `STALLED`.
"""

import socket
from time import monotonic

from ..engines import queues
from ..relaying import PIECE

SILENCE, FAREWELL = 5.0, 30.0  # seconds for a silent and for a talking peer that has read everything: as nginx's
STALLED = 300.0  # seconds without a byte read by a peer that has not read everything: minutes, for a pager's user


def hang_up(sock: socket.socket, stalled: float = STALLED) -> bool:
    """Close a connection so that its peer can read all that was sent to it, and then the end of file.

    Returns whether the peer has left data unread for `stalled` seconds; what it has not read may be lost then.
    """
    try:
        sock.shutdown(socket.SHUT_WR)
        sock.settimeout(min(SILENCE, stalled))
        since = moved = monotonic()
        unread = queues(sock.fileno())[1]
        while unread or monotonic() < since + FAREWELL:
            silent = False
            try:
                if not sock.recv(PIECE):
                    return False
            except TimeoutError:
                silent = True
            before, unread = unread, queues(sock.fileno())[1]
            if unread < before:
                moved = monotonic()
            elif unread and monotonic() - moved >= stalled:
                return True
            elif silent and not unread:
                return False
    except OSError:
        pass  # the peer is gone
    finally:
        sock.close()
    return False
