"""Addresses to listen on and to connect to: ``HOST:PORT``, ``[HOST]:PORT`` or ``unix:PATH``.

Listening is limited to loopback: an address that other machines can reach must be asked for.
"""

import os
import socket
from dataclasses import dataclass

from .. import errors
from ..errors import SUN_PATH_MAX

HIGHEST_PORT = (1 << 16) - 1


@dataclass(frozen=True)
class Address:
    """A TCP address, or the path of a Unix socket where `path` is not empty."""

    host: str = ""
    port: int = 0
    path: str = ""

    def __str__(self) -> str:
        if self.path:
            return f"unix:{self.path}"
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


def parse(text: str, *, remote: bool = False, option: str = "--listen") -> Address:
    """The address that `text` names. Raises `UsageError`, also for one beyond loopback unless `remote`."""
    if text.startswith("unix:") and len(text) > len("unix:"):
        return Address(path=text.removeprefix("unix:"))
    host, port = _split(text, lowest=0)
    host = _normal("127.0.0.1" if host == "localhost" else host)
    if not host or port is None:
        raise errors.UsageError(
            f"invalid {option} {text!r}: expected 127.0.0.1:PORT, [::1]:PORT (PORT 0: the kernel chooses) or unix:PATH"
        )
    check_reach(host, text, remote)
    return Address(host, port)


def parse_target(option: str, text: str) -> tuple[str, int]:
    """Host and port to connect to, from ``HOST:PORT`` or ``[HOST]:PORT``. Raises `UsageError`, which names `option`."""
    host, port = _split(text, lowest=1)
    if not host or port is None:
        raise errors.UsageError(f"invalid {option} {text!r}: expected HOST:PORT with PORT from 1 to {HIGHEST_PORT}")
    return host, port


def _split(text: str, *, lowest: int) -> tuple[str, int | None]:
    """Host and port, each empty or None where it is not valid. A host with colons must stand in brackets."""
    host, _, digits = text.rpartition(":")
    bracketed = host.startswith("[") and host.endswith("]")
    host = host[1:-1] if bracketed else "" if ":" in host else host
    is_number = digits.isascii() and digits.isdigit() and len(digits) < 6
    return host, int(digits) if is_number and lowest <= int(digits) <= HIGHEST_PORT else None


def _normal(host: str) -> str:
    """A numeric address in its usual spelling; empty for anything else."""
    number, percent, zone = host.partition("%")
    family = socket.AF_INET6 if ":" in number else socket.AF_INET
    try:
        return socket.inet_ntop(family, socket.inet_pton(family, number)) + percent + zone
    except (OSError, ValueError):
        return ""


def check_reach(host: str, text: str, remote: bool) -> None:
    """Raise `UsageError` for a host beyond loopback, unless `remote`."""
    if not (host.startswith("127.") or host == "::1" or remote):
        raise errors.UsageError(
            f"{text} is reachable from other machines and fastvsock does no authentication: "
            "pass --allow-remote if that is intended"
        )


def unix_name(path: str) -> str:
    """What bind(2) and connect(2) take for `path`: a leading @ names an abstract socket, see unix(7)."""
    return f"\0{path[1:]}" if path.startswith("@") else path


def path_warning(path: str) -> str:
    """What other programs cannot do with the Unix socket `path`, since it is too long; empty where it is not.

    This package reaches a longer path through /proc (see socket_file.py), which a VMM, for instance, does not do.
    """
    size = len(os.fsencode(path))
    if size <= SUN_PATH_MAX:
        return ""
    return (
        f"warning: the path {errors.printable(path)} has {size} bytes, and a Unix socket address {SUN_PATH_MAX}: most "
        "programs, a VMM among them, cannot connect to it; use a shorter path"
    )
