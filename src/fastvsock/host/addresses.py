"""Addresses to listen on and to connect to: ``HOST:PORT``, ``[HOST]:PORT`` or ``unix:PATH``.

Loopback is the rule: an address that other machines reach must be asked for.
"""

import socket

from .. import errors


class Address:
    """A TCP address, or, where `path` is not empty, a Unix socket's."""

    __slots__ = ("host", "path", "port")

    def __init__(self, host: str = "", port: int = 0, path: str = "") -> None:
        self.host, self.port, self.path = host, port, path

    def __str__(self) -> str:
        if self.path:
            return f"unix:{self.path}"
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


def parse(text: str, *, remote: bool = False) -> Address:
    """The address that `text` means. Raises `UsageError`, also for one that is not loopback unless `remote`."""
    if text.startswith("unix:") and len(text) > len("unix:"):
        return Address(path=text.removeprefix("unix:"))
    host, colon, digits = text.rpartition(":")
    host = host[1:-1] if host.startswith("[") and host.endswith("]") else host.replace(":", " ")
    host = _normal("127.0.0.1" if host == "localhost" else host)
    if not (host and colon and digits.isascii() and digits.isdigit() and len(digits) < 6 and int(digits) < 1 << 16):
        raise errors.UsageError(
            f"{text!r} is no address to listen on: give 127.0.0.1:PORT, [::1]:PORT (PORT 0: the kernel chooses) "
            "or unix:PATH"
        )
    check_reach(host, text, remote)
    return Address(host, int(digits))


def parse_target(option: str, text: str) -> tuple[str, int]:
    """Host and port to connect to, from ``HOST:PORT`` or ``[HOST]:PORT``. Raises `UsageError`, which names `option`."""
    host, colon, digits = text.rpartition(":")
    bracketed = host.startswith("[") and host.endswith("]")
    host = host[1:-1] if bracketed else host
    if not (
        host and colon and digits.isascii() and digits.isdigit() and len(digits) < 6 and 0 < int(digits) < 1 << 16
    ) or (":" in host and not bracketed):
        raise errors.UsageError(f"invalid {option} {text!r}: expected HOST:PORT with PORT from 1 to 65535")
    return host, int(digits)


def _normal(host: str) -> str:
    """A numeric address in its usual spelling; nothing for what is none."""
    number, percent, zone = host.partition("%")
    family = socket.AF_INET6 if ":" in number else socket.AF_INET
    try:
        return socket.inet_ntop(family, socket.inet_pton(family, number)) + percent + zone
    except (OSError, ValueError):
        return ""


def check_reach(host: str, text: str, remote: bool) -> None:
    if not (host.startswith("127.") or host == "::1" or remote):
        raise errors.UsageError(
            f"{text} can be reached from other machines, which would reach the guest without a password of ours: "
            "--allow-remote if it is meant so"
        )
