"""Asks the kernel about one TCP socket of this machine: NETLINK_SOCK_DIAG, see sock_diag(7).

/proc/net/tcp shows the same for all sockets, so reading it takes milliseconds where thousands of connections have just
ended. It is the fallback where netlink is not allowed: gVisor and some seccomp profiles.

Layouts, of include/uapi/linux/inet_diag.h and sock_diag.h; addresses and ports are in network byte order::

    struct inet_diag_req_v2 { u8 family, protocol, ext, pad; u32 states; struct inet_diag_sockid id; }
    struct inet_diag_sockid { be16 sport, dport; be32 src[4], dst[4]; u32 if; u32 cookie[2]; }
    struct inet_diag_msg    { u8 family, state, timer, retrans; struct inet_diag_sockid id;
                              u32 expires, rqueue, wqueue, uid, inode; }
"""

import errno
import os
import socket
import struct
from collections.abc import Iterator

NETLINK_SOCK_DIAG = 4  # include/uapi/linux/netlink.h
SOCK_DIAG_BY_FAMILY = 20
NLM_F_REQUEST, NLMSG_ERROR = 1, 2
HEADER = struct.Struct("=IHHII")  # struct nlmsghdr: length, type, flags, sequence number, port
REQUEST = struct.Struct("=BBBBI")
PORTS = struct.Struct("!HH")
NO_COOKIE = struct.pack("=II", 0xFFFFFFFF, 0xFFFFFFFF)  # INET_DIAG_NOCOOKIE
ANSWER = struct.Struct("=4B48x3I2I")  # inet_diag_msg
MAPPED = "::ffff:"  # an IPv4 client of a socket for both: RFC 4291, 2.5.5.2

# include/net/tcp_states.h. A socket in TIME_WAIT, or in FIN_WAIT2 once its process has closed it, is only a remnant
# (tcp_timewait_sock), which has no user and reports 0.
FIN_WAIT1, FIN_WAIT2, TIME_WAIT = 4, 5, 6
LISTEN = 10
PROC_NET = "/proc/net"

Ends = tuple[int, str, int, str, int, int]  # family, a socket's own host and port, its peer's, the interface
Found = tuple[int, int, int]  # state, uid, and inode: 0 where no process has the socket open any more


def other_end(sock: socket.socket) -> Found | None:
    """State, uid and inode of the socket at the other end of a TCP connection inside this machine.

    None where there is no such socket (any more). Raises `OSError` where the kernel does not answer.
    """
    theirs, ours = _ends(sock, other=True), _ends(sock, other=False)
    try:
        found = _ask(theirs)
        if found or _ask(ours):  # without the module tcp_diag, the kernel finds nothing, not even this one
            return found
    except OSError:
        pass
    return _look_up(theirs)


def _ends(sock: socket.socket, *, other: bool) -> Ends:
    """The ends of a connection, as this socket or the one at the other end sees them."""
    source, target = sock.getsockname(), sock.getpeername()
    if other:
        source, target = target, source
    hosts = [address[0].partition("%")[0] for address in (source, target)]
    if sock.family == socket.AF_INET6 and all(host.startswith(MAPPED) and "." in host for host in hosts):
        here, there = (host.removeprefix(MAPPED) for host in hosts)
        return socket.AF_INET, here, source[1], there, target[1], 0
    scope = source[3] if sock.family == socket.AF_INET6 else 0
    return sock.family, hosts[0], source[1], hosts[1], target[1], scope


def _ask(ends: Ends) -> Found | None:
    family, host, port, peer, peer_port, interface = ends
    addresses = b"".join(socket.inet_pton(family, end).ljust(16, b"\0") for end in (host, peer))
    socket_id = PORTS.pack(port, peer_port) + addresses + struct.pack("=I", interface) + NO_COOKIE
    body = REQUEST.pack(family, socket.IPPROTO_TCP, 0, 0, 0xFFFFFFFF) + socket_id
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, NETLINK_SOCK_DIAG) as kernel:
        kernel.send(HEADER.pack(HEADER.size + len(body), SOCK_DIAG_BY_FAMILY, NLM_F_REQUEST, 1, 0) + body)
        answer = kernel.recv(4096)
    if HEADER.unpack_from(answer)[1] == NLMSG_ERROR:
        number = -struct.unpack_from("=i", answer, HEADER.size)[0]
        if number == errno.ENOENT:
            return None
        raise OSError(number, os.strerror(number))
    _, state, _, _, _, _, _, uid, inode = ANSWER.unpack_from(answer, HEADER.size)
    return state, uid, inode


def _look_up(ends: Ends) -> Found | None:
    family, host, port, peer, peer_port, _ = ends
    remote = _in_table(family, peer, peer_port)
    return next((found for theirs, found in _sockets_at(family, host, port) if theirs == remote), None)


def listening_inodes(port: int) -> set[int]:
    """The inodes of the sockets that accept connections to `port` of 127.0.0.1, in this network namespace.

    Raises `FileNotFoundError` where /proc/net is not there.
    """
    addresses = [(socket.AF_INET, "127.0.0.1"), (socket.AF_INET, "0.0.0.0")]
    if os.path.exists(f"{PROC_NET}/tcp6"):  # not where IPv6 is switched off
        addresses += [(socket.AF_INET6, "::"), (socket.AF_INET6, f"{MAPPED}127.0.0.1")]
    found = [found for family, host in addresses for _, found in _sockets_at(family, host, port)]
    return {inode for state, _, inode in found if state == LISTEN}


def _sockets_at(family: int, host: str, port: int) -> Iterator[tuple[str, Found]]:
    """The TCP sockets that have this address, from /proc/net: see proc(5). Each with its peer's, as written there."""
    local = _in_table(family, host, port)
    with open(f"{PROC_NET}/tcp6" if family == socket.AF_INET6 else f"{PROC_NET}/tcp") as lines:
        for line in lines:
            if local in line:
                _, address, peer, state, _, _, _, uid, _, inode, *_ = line.split()
                if address == local:
                    yield peer, (int(state, 16), int(uid), int(inode))


def _in_table(family: int, host: str, port: int) -> str:
    """An address as /proc/net/tcp writes it: 32-bit words in the machine's byte order."""
    packed = socket.inet_pton(family, host)
    words = struct.unpack(f"={len(packed) // 4}I", packed)
    return "".join(f"{word:08X}" for word in words) + f":{port:04X}"


def is_closed(sock: socket.socket) -> bool:
    """Whether the other end of a TCP connection inside this machine is closed, and not only half-closed."""
    if sock.family == socket.AF_UNIX:
        return False
    try:
        found = other_end(sock)
    except OSError:
        return False
    return found is not None and not found[2]
