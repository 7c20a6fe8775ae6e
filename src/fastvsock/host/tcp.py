"""What every TCP connection of a service has set, on whichever side it was made."""

import socket
from contextlib import suppress

# By keepalive this side notices a peer that closed without a word: its kernel answers for it for a minute.
OPTIONS = (
    (socket.IPPROTO_TCP, socket.TCP_NODELAY, 1),
    (socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1),
    (socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 15),  # seconds
    (socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, 15),
    (socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 4),
)


def set_options(sock: socket.socket) -> None:
    """Let `sock` send without delay, and find out by itself that its peer is gone."""
    for level, option, value in OPTIONS:
        with suppress(OSError):  # an inherited socket may be MPTCP's or SCTP's, which do not have them all
            sock.setsockopt(level, option, value)
