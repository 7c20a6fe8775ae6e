"""The table of peers: every way to move the bytes, ours and others.

A *stdio* peer joins its stdin and stdout to a port behind the Unix socket; of a *start* peer, which does the same, only
the start is measured, since the engine is that of another peer. A *proxy* peer listens on TCP. `none` stands
for no forwarder: the ends hold the socket themselves, which is the limit. `python` and `python -S` only start.
"""

import atexit
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from importlib import import_module
from importlib.metadata import version
from pathlib import Path

from ..build_c import BUILD, program

HERE = Path(__file__).parent
SYSTEMD_PROXY = "/lib/systemd/systemd-socket-proxyd"


@dataclass(frozen=True)
class Peer:
    """One way to move bytes.

    `command` returns the command line, from UDS and port, and for a proxy peer from a third number, by `listens`:
    `fd`, a listening TCP socket that the peer inherits; `port`, a free port on 127.0.0.1; `announces`, the number is
    unused, the peer chooses a port and prints it. `missing` returns why the peer cannot run here, or an empty string.
    `plain` peers do not know the handshake, and the far end does not expect one. A `silent` one writes no first byte.
    """

    name: str
    title: str
    kind: str  # stdio, start, proxy, none, bare or kubectl
    command: Callable[..., list[str]] = field(repr=False)
    missing: Callable[[], str] = field(default=lambda: "", repr=False)
    version: Callable[[], str] = field(default=lambda: "", repr=False)
    plain: bool = False
    silent: bool = False
    listens: str = ""


def _needs(name: str) -> Callable[[], str]:
    return lambda: "" if shutil.which(name, path=_path()) else f"{name} is not installed"


def _path() -> str:
    return os.pathsep.join((os.environ.get("PATH", os.defpath), "/usr/sbin", "/sbin"))


def _found(name: str) -> str:
    return shutil.which(name, path=_path()) or name


@cache
def _version_line(*command: str) -> str:
    """The line about the version in a program's output."""
    try:
        text = subprocess.run(command, capture_output=True, text=True, timeout=10, check=False).stdout
    except OSError:
        return ""
    lines = [line.strip() for line in text.splitlines() if "ersion" in line or line.startswith("systemd")]
    return lines[0] if lines else ""


def socat_version() -> str:
    """socat's line about its version."""
    return _version_line("socat", "-V")


def _ours(engine: str) -> Callable[[str, int], list[str]]:
    """The installed command; `-m` would add the 5 ms that runpy takes to every start."""
    script = Path(sys.executable).parent / "runcvm-vsock-connect"
    start = [str(script)] if script.exists() else [sys.executable, "-m", "fastvsock.runcvm_vsock_connect"]
    return lambda uds, port: [*start, "--engine", engine, uds, str(port)]


def binary(suffix: str = "") -> Path:
    """The static binary for this machine that `make binaries` or `make test-binary` wrote, the newer one."""
    name = f"fastvsock-{version('fastvsock')}-linux-{os.uname().machine}{suffix}"
    found = [path for folder in ("dist", "build/static") if (path := HERE.parents[1] / folder / name).exists()]
    return max(found, key=lambda path: path.stat().st_mtime, default=Path("dist", name))


@cache
def static(suffix: str = "") -> Path:
    """A folder with a copy of the static binary by both of its names, which decide what it does.

    It is written piece by piece: a file that is written at once may lie in huge pages, each of which is mapped whole.
    """
    folder = BUILD / f"static{suffix}"
    folder.mkdir(parents=True, exist_ok=True)
    for name in ("fastvsock", "runcvm-vsock-connect"):
        unfinished = folder / f"{name}.{os.getpid()}"
        with binary(suffix).open("rb") as source, unfinished.open("wb", buffering=0) as copy:
            shutil.copyfileobj(source, copy, 1 << 16)
            os.fsync(copy.fileno())  # or its pages would be dirty, and count as written to by who maps them
        unfinished.chmod(0o755)
        unfinished.replace(folder / name)
    return folder


@cache
def installation() -> Path:
    """A virtual environment with a copy of this package, laid out as pip lays it out: what a user has.

    The environment of development is slower: its packages add files (`*.pth`) that each start reads.
    """
    folder = BUILD / f"installation-{os.getpid()}"
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder], check=True)
    (packages,) = folder.glob("lib/python*/site-packages")
    source = Path(import_module("fastvsock").__path__[0])
    shutil.copytree(source, packages / "fastvsock", ignore=shutil.ignore_patterns("__pycache__", "*.pyx", "*.c"))
    python = folder / "bin" / "python"
    subprocess.run([python, "-m", "compileall", "-q", packages], check=True)
    script = python.with_name("runcvm-vsock-connect")
    code = (HERE.parents[1] / "src" / "scripts" / script.name).read_text()
    script.write_text(code.replace("#!python", f"#!{python}", 1))
    script.chmod(0o755)
    return folder


def _installed(uds: str, port: int) -> list[str]:
    return [str(installation() / "bin" / "runcvm-vsock-connect"), uds, str(port)]


def _static(suffix: str) -> Callable[[str, int], list[str]]:
    return lambda uds, port: [str(static(suffix) / "runcvm-vsock-connect"), uds, str(port)]


def no_binary(suffix: str = "") -> str:
    """Return why there is no static binary, or an empty string."""
    path = binary(suffix)
    return "" if path.is_absolute() else f"{path.name} was not built (make binaries)"


def our_version() -> str:
    """The name and version of this package."""
    return f"fastvsock {version('fastvsock')}"


def _no_splice() -> str:
    try:
        import_module("fastvsock.engines._splice")
    except ImportError as error:
        return f"the splice engine was not built ({error})"
    return ""


def _no_proxy() -> str:
    commands = import_module("fastvsock.cli").COMMANDS
    return "" if "proxy" in commands else "this fastvsock has no command `proxy`"


def _no_systemd_proxy() -> str:
    return "" if Path(SYSTEMD_PROXY).exists() else "systemd-socket-proxyd is not installed"


def _in_c(kind: str) -> Callable[[str, int], list[str]]:
    return lambda uds, port: [program("forward"), kind, uds, str(port)]


def _single_socat(uds: str, port: int) -> list[str]:
    return [program("forward"), "prelude", uds, str(port), "socat", "STDIO", "FD:3"]


def _our_proxy(uds: str, port: int, _: int) -> list[str]:
    return [sys.executable, "-m", "fastvsock", "proxy", uds, str(port), "--listen", "127.0.0.1:0"]


def _socat_proxy(uds: str, port: int, tcp: int) -> list[str]:
    return ["socat", f"TCP-LISTEN:{tcp},bind=127.0.0.1,reuseaddr,fork,backlog=512", f"UNIX-CONNECT:{uds}"]


def _haproxy(uds: str, port: int, listener: int) -> list[str]:
    """HAProxy in TCP mode; its configuration lies beside the socket."""
    configuration = Path(uds).with_suffix(".haproxy")
    configuration.write_text(
        f"global\n  maxconn 512\n  tune.pipesize {1 << 20}\n"
        "defaults\n  mode tcp\n  option splice-auto\n  timeout connect 5s\n  timeout client 1m\n  timeout server 1m\n"
        f"listen bench\n  bind fd@{listener}\n  server far unix@{uds}\n"
    )
    return [_found("haproxy"), "-db", "-q", "-f", str(configuration)]


def _systemd_proxy(uds: str, port: int, listener: int) -> list[str]:
    return [program("forward"), "activate", str(listener), SYSTEMD_PROXY, uds]


def _first_byte(*options: str) -> Callable[[str, int], list[str]]:
    return lambda uds, port: [sys.executable, *options, "-c", "import posix; posix.write(1, b'x')"]


def _nothing(uds: str, port: int) -> list[str]:
    return []


def _python_version() -> str:
    return f"Python {sys.version.split()[0]}"


PEERS = (
    Peer("splice", "fastvsock, splice", "stdio", _ours("splice"), _no_splice, our_version),
    Peer("copy", "fastvsock, copy", "stdio", _ours("copy"), version=our_version),
    Peer("installed", "fastvsock, installed by pip", "start", _installed, version=our_version),
    Peer("static", "fastvsock, static", "start", _static(""), no_binary, our_version),
    Peer(
        "static-plain",
        "fastvsock, static, plain",
        "start",
        _static("-plain"),
        lambda: no_binary("-plain"),
        our_version,
    ),
    Peer(
        "pipeline",
        "three socats (RunCVM at first)",
        "stdio",
        lambda uds, port: ["sh", str(HERE / "pipeline.sh"), uds, str(port)],
        _needs("socat"),
        socat_version,
    ),
    Peer(
        "threads",
        "Python threads (RunCVM today)",
        "stdio",
        lambda uds, port: [sys.executable, str(HERE / "threads.py"), uds, str(port)],
        version=_python_version,
    ),
    Peer("socat", "one socat", "stdio", _single_socat, _needs("socat"), socat_version),
    Peer("c-copy", "C, read/write", "stdio", _in_c("copy")),
    Peer("c-splice", "C, splice", "stdio", _in_c("splice")),
    Peer("none", "no forwarder", "none", _nothing),
    Peer("python", "python -c", "bare", _first_byte(), version=_python_version),
    Peer("python-S", "python -I -S -c", "bare", _first_byte("-I", "-S"), version=_python_version),
    Peer("true", "true", "bare", lambda uds, port: ["true"], silent=True),
    Peer("proxy", "fastvsock proxy", "proxy", _our_proxy, _no_proxy, our_version, listens="announces"),
    Peer("proxy-socat", "socat, fork", "proxy", _socat_proxy, _needs("socat"), socat_version, True, listens="port"),
    Peer(
        "proxy-haproxy",
        "HAProxy, TCP, splice",
        "proxy",
        _haproxy,
        _needs("haproxy"),
        lambda: _version_line(_found("haproxy"), "-v"),
        plain=True,
        listens="fd",
    ),
    Peer(
        "proxy-systemd",
        "systemd-socket-proxyd",
        "proxy",
        _systemd_proxy,
        _no_systemd_proxy,
        lambda: _version_line(SYSTEMD_PROXY, "--version"),
        plain=True,
        listens="fd",
    ),
)
