"""What goes wrong in practice, looked for: each finding is ok, a warning or a failure, and says what to do.

`check_bundle` is for a RunCVM bundle (kubectl cp fails with "required file not found" where tar is not there or not in
the aliases), `check_here` for this Python and this machine, `check_uds` for a VMM's socket.
"""

import errno
import os
import re
import shutil
import socket
import stat
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import Any

from .. import engines, errors, handshake
from . import script_edits
from .bundle import ADD_PYTHON, DEFAULTS, EXEC, Bundle, run
from .bundle_files import BundleError, Root
from .install import uses_umbrella
from .payload import CONNECT, HOME, UMBRELLA, is_launcher

OK, WARNING, FAILED = "ok", "warning", "failed"
GLOBAL_PORT = 22222  # RunCVM's one proxy for all
PROC_NET = "/proc/net"
EMPTY_ARCHIVE = bytes(1024)  # two blocks of zeros: the end of a tar archive, and nothing before it
SLOW = 0.25  # seconds; a handshake that is answered at all took Firecracker 4 to 9 ms
TIMEOUT = 5.0  # seconds for connecting and for the handshake
INSTALL = "run: fastvsock runcvm install"

ENGINE = """
import sys
sys.path.insert(0, sys.argv[1])
from fastvsock import engines, errors
try:
    print(engines.choose("splice"))
except errors.EngineError as error:
    print("copy", error)
"""


@dataclass(frozen=True)
class Finding:
    """What was looked at, how it is, and, unless it is well, what to do."""

    check: str
    state: str
    text: str
    advice: str = ""


def check_bundle(root: Root) -> Iterator[Finding]:
    """The bundle: tar, the aliases, the exec script, the launcher, Python and the engine."""
    bundle = Bundle(root)
    for look in (_linker, _tar, _aliases, _exec, _launcher, _bundle_python, _bundle_engine):
        yield _looked(look.__name__.strip("_").replace("_", " "), look, bundle)


def check_here() -> Iterator[Finding]:
    """This Python, its engine, and who holds RunCVM's global port here."""
    yield _looked("python", _python, f"Python {sys.version}", sys.executable)
    yield _looked("engine", _own_engine)
    yield _looked("port 22222", _global_port)


def _looked(name: str, look: Callable[..., Finding], *arguments: Any) -> Finding:
    """What a look finds. What it fails at is a finding too: the others are still worth having."""
    try:
        return look(*arguments)
    except BundleError as error:
        return Finding(name, FAILED, str(error), "have RunCVM install its bundle anew")
    except Exception as error:
        if os.environ.get("FASTVSOCK_DEBUG") == "1":
            raise
        text = f"cannot be looked at: {type(error).__name__}: {error}"
        return Finding(name, FAILED, text, "look by hand (FASTVSOCK_DEBUG=1 shows where it failed)")


def check_uds(uds: str, port: int | None) -> Iterator[Finding]:
    """The VMM's socket: there, a socket, open to us, and, where a guest port is given, answering. Ends at a failure."""
    try:
        mode = os.stat(uds).st_mode
    except OSError as error:
        missing = "start the VMM, or give the uds_path of its vsock device"
        advice = "look as the user that the VMM runs as" if isinstance(error, PermissionError) else missing
        yield Finding("uds", FAILED, f"{uds}: {error.strerror}", advice)
        return
    if not stat.S_ISSOCK(mode):
        yield Finding(
            "uds", FAILED, f"{uds}: is there, but is no socket", "give the uds_path of the VMM's vsock device"
        )
        return
    yield Finding("uds", OK, f"{uds}: is a socket")
    reached = _looked("connect", _connect, uds)
    yield reached
    if port is not None and reached.state == OK:
        yield _looked("handshake", _handshake, uds, port)


def no_uds(usual: str) -> Finding:
    """That no socket was looked at."""
    return Finding("uds", OK, f"not looked at: none is given, and there is none at {usual}")


def no_bundle(error: BundleError) -> Finding:
    """That there is no bundle to look at."""
    return Finding("bundle", FAILED, str(error), "install RunCVM first, or look where its bundle is")


def _linker(bundle: Bundle) -> Finding:
    if not bundle.has_linker:
        return Finding("linker", FAILED, "lib/ld is not there or not executable", "have RunCVM install its bundle anew")
    if bundle.foreign:
        return _untried("linker", "lib/ld", bundle)
    return Finding("linker", OK, f"lib/ld is there, for {bundle.build or 'a machine that it does not tell'}")


def _untried(check: str, what: str, bundle: Bundle) -> Finding:
    """What is there, and belongs to another machine than this one."""
    text = f"{what} is there, built for {bundle.foreign}, and cannot be run here"
    return Finding(check, WARNING, text, f"run: fastvsock runcvm check, on a machine of {bundle.foreign}")


def _tar(bundle: Bundle) -> Finding:
    path = bundle.find("tar")
    if not path:
        return Finding("tar", FAILED, "no tar in the bundle: kubectl cp cannot work", f"{INSTALL}, which links busybox")
    ran = bundle.run(path, "-t", "-f", "-", data=EMPTY_ARCHIVE)
    through = "through lib/ld" if bundle.has_linker else "without lib/ld"
    if ran.wrong and bundle.foreign:
        return _untried("tar", path, bundle)
    if ran.wrong:
        text = f"{path} does not run {through}: {ran.wrong}"
        return Finding("tar", FAILED, text, "link bin/tar to a busybox that has tar")
    return Finding("tar", OK, f"{path} runs {through}")


def _aliases(bundle: Bundle) -> Finding:
    text = _script(bundle, DEFAULTS)
    try:
        there = script_edits.add_alias(text) == text
    except script_edits.Unknown as error:
        advice = "see that it makes a function for tar that runs it through lib/ld"
        return Finding("aliases", WARNING, f"{DEFAULTS} has a shape that is not known: {error}", advice)
    if there:
        return Finding("aliases", OK, "tar is in the word list of create_aliases()")
    return Finding("aliases", FAILED, f"tar is not in the word list of create_aliases() in {DEFAULTS}", INSTALL)


def _exec(bundle: Bundle) -> Finding:
    text = _script(bundle, EXEC)
    try:
        done = script_edits.end_proxy(text) == text
    except script_edits.Unknown as error:
        advice = "see that each exec has a transport of its own: dbclient -J, and no port"
        return Finding("exec", WARNING, f"{EXEC} has a shape that is not known: {error}", advice)
    if done:
        return Finding("exec", OK, f"{EXEC} gives each dbclient a transport of its own")
    return Finding("exec", FAILED, f"{EXEC} starts socat on a guessed port: exec and cp break each other", INSTALL)


def _script(bundle: Bundle, path: str) -> str:
    file = bundle.root.read(path)
    if file is None:
        raise BundleError(f"{path} is not there: is this RunCVM with Firecracker?")
    return file.data.decode(errors="surrogateescape")


def _launcher(bundle: Bundle) -> Finding:
    """The transport's launcher, and the other one where the exec script starts that."""
    script = bundle.root.read(EXEC)
    proxied = script is not None and uses_umbrella(script.data.decode(errors="replace"))
    said = []
    for path in (CONNECT, UMBRELLA) if proxied else (CONNECT,):
        file = bundle.root.read(path)
        if file is None:
            why = f", and {EXEC} starts it" if path == UMBRELLA else ""
            return Finding("launcher", FAILED, f"{path} is not there{why}", INSTALL)
        if bundle.foreign:
            wrong, version = "" if is_launcher(file.data) else ": it has another head", ""
        else:
            wrong, version = _version(bundle, path)
        if wrong:
            return Finding("launcher", FAILED, f"{path} is not fastvsock's{wrong}", INSTALL)
        said.append(f"{path} ({version})")
    if bundle.foreign:
        return _untried("launcher", CONNECT, bundle)
    return Finding("launcher", OK, f"starts directly and as python3 PATH: {' and '.join(said)}")


def _version(bundle: Bundle, path: str) -> tuple[str, str]:
    """What is wrong with a launcher that is started in both ways, and what it says of itself."""
    full, name = bundle.root.full(path), os.path.basename(path)
    said = ""
    for way, command in (("directly", [full]), ("as python3 PATH", [*_interpreter(bundle), full])):
        ran = run([*command, "--version"])
        said = ran.out.strip()
        if ran.wrong or not said.startswith(f"{name} "):
            return f", run {way}: {ran.wrong or repr(said)}", ""
    return "", said


def _interpreter(bundle: Bundle) -> list[str]:
    """The command line of the Python that serves the launcher."""
    return bundle.command(bundle.python) if bundle.python else [shutil.which("python3") or "python3"]


def _bundle_python(bundle: Bundle) -> Finding:
    name = "bundle python"
    if bundle.python and bundle.foreign:
        return _untried(name, bundle.python, bundle)
    if bundle.python:
        return _python(bundle.run(bundle.python, "-V").out, bundle.python, name)
    here = shutil.which("python3")
    if here is None:
        return Finding(name, FAILED, f"{bundle.no_python}, and none in PATH", ADD_PYTHON)
    return Finding(name, WARNING, f"{bundle.no_python}: the launcher takes the one in PATH, here {here}", ADD_PYTHON)


def _bundle_engine(bundle: Bundle) -> Finding:
    file = bundle.root.read(CONNECT)
    site = next((f"{HOME}/{name}" for name in bundle.root.names(HOME) if file and name.encode() in file.data), "")
    if site and bundle.foreign:
        return _untried("bundle engine", site, bundle)
    ran = run([*_interpreter(bundle), "-IS", "-c", ENGINE, bundle.root.full(site)]) if site else None
    if ran is None or ran.wrong:
        why = f": {ran.wrong}" if ran else ""
        return Finding("bundle engine", FAILED, f"no package of fastvsock that loads in the bundle{why}", INSTALL)
    chosen, _, reason = ran.out.strip().partition(" ")
    return _engine(chosen, reason, "bundle engine")


def _python(said: str, path: str, check: str = "python") -> Finding:
    """`said` is what `python3 -V` prints: PyPy has more numbers in it."""
    version = re.search(r"Python (\d+)\.(\d+)[\w.+]*", said)
    if version is None:
        return Finding(check, FAILED, f"{path} tells no version: {said!r}", "see that it is Python 3.11 or newer")
    if tuple(map(int, version.groups())) < (3, 11):
        return Finding(check, FAILED, f"{path} is {version.group()}", "fastvsock needs 3.11 or newer")
    return Finding(check, OK, f"{path} is {version.group()}")


def _engine(chosen: str, reason: str, check: str = "engine") -> Finding:
    if chosen == "splice":
        return Finding(check, OK, "splice: it is there, and loads")
    return Finding(check, WARNING, f"copy, which takes more CPU time: {reason}", "install the wheel for this platform")


def _own_engine() -> Finding:
    wanted = os.environ.get("FASTVSOCK_ENGINE")
    try:
        chosen = engines.choose()
        if wanted:
            return Finding("engine", OK, f"{chosen}, since FASTVSOCK_ENGINE={wanted}")
        return _engine(engines.choose("splice"), "")
    except errors.EngineError as error:
        if wanted:
            return Finding("engine", FAILED, str(error), "unset FASTVSOCK_ENGINE, or set it to auto")
        return _engine("copy", str(error))


def _connect(uds: str) -> Finding:
    """Whether a connection is taken; nothing is said on it."""
    held, address = -1, uds
    try:
        if len(os.fsencode(uds)) > handshake.SUN_PATH_MAX:  # longer than an address: unix(7)
            held = os.open(uds, os.O_PATH | os.O_CLOEXEC)
            address = f"/proc/self/fd/{held}"
        with socket.socket(socket.AF_UNIX) as sock:
            sock.settimeout(TIMEOUT)
            sock.connect(address)
        return Finding("connect", OK, f"{uds}: may be connected to")
    except OSError as error:
        advice = {
            errno.ECONNREFUSED: "nobody listens on it: start the VMM anew, its socket file is a former one's",
            errno.EACCES: "run as the user that the VMM runs as, or change the socket's mode",
            errno.EPROTOTYPE: "it is no stream socket: give the uds_path of the VMM's vsock device",
        }.get(error.errno or 0, "see whether the VMM is paused, or out of file descriptors")
        return Finding("connect", FAILED, f"{uds}: {error.strerror or 'no answer'}", advice)
    finally:
        if held >= 0:
            os.close(held)


def _handshake(uds: str, port: int) -> Finding:
    started = perf_counter()
    try:
        handshake.connect(uds, port, TIMEOUT).close()
    except errors.HandshakeTimeoutError:
        text = f"{uds}: no answer for guest port {port} within {TIMEOUT:g} s"
        advice = "see whether the VMM is paused, or out of file descriptors (its limit of open files, 1,024 is usual)"
        return Finding("handshake", FAILED, text, advice)
    except errors.ConnectError as error:
        text = re.sub(r" \(--\w+ [^)]*\)$", "", str(error))  # an option that the transport has
        return Finding("handshake", FAILED, text, f"see that the guest runs and listens on vsock port {port}")
    seconds = perf_counter() - started
    text = f"guest port {port} answered in {seconds * 1000:.1f} ms"
    if seconds > SLOW:
        return Finding("handshake", WARNING, text, "see what keeps the VMM busy: CPU, or many new connections")
    return Finding("handshake", OK, text)


def _global_port() -> Finding:
    tables = [table for name in ("tcp", "tcp6") if (table := Path(PROC_NET, name)).exists()]
    if not tables:
        text = f"nobody can tell who listens on 127.0.0.1:22222: {PROC_NET} is not there"
        return Finding("port 22222", WARNING, text, "look where /proc is mounted")
    inodes = {inode for table in tables for inode in _listening(table)}
    if not inodes:
        return Finding("port 22222", OK, "nothing listens on 127.0.0.1:22222 in this network namespace")
    who = ", ".join(_holders(inodes)) or "a process that this user may not look into"
    advice = "whatever goes through it shares it: end it, once exec and cp have transports of their own"
    return Finding("port 22222", WARNING, f"127.0.0.1:22222 is held by {who}", advice)


def _listening(table: Path) -> Iterator[str]:
    """The inodes of the sockets that take connections to 127.0.0.1:22222: proc(5), /proc/net/tcp."""
    for line in table.read_text().splitlines()[1:]:
        _, local, _, state, *rest = line.split()
        address, _, port = local.partition(":")
        loopback = address in ("0100007F", "7F000001") or not address.strip("0")
        if state == "0A" and int(port, 16) == GLOBAL_PORT and loopback:
            yield rest[5]


def _holders(inodes: set[str]) -> Iterator[str]:
    links = {f"socket:[{inode}]" for inode in inodes}
    for process in sorted(Path("/proc").glob("[0-9]*"), key=lambda path: int(path.name)):
        try:
            if any(os.readlink(entry) in links for entry in (process / "fd").iterdir()):
                yield f"{(process / 'comm').read_text().strip()} (pid {process.name})"
        except OSError:  # gone, or another user's
            continue
