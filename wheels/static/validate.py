"""What a wheel with the binary is put through: looked at as bytes, run by both names, and measured.

The same questions as of the other wheels, asked of a file that no Python imports. The machine's own is run directly,
the other one under qemu-user.
"""

import hashlib
import os
import shlex
import shutil
import socket
import struct
import subprocess
import tempfile
import threading
import zipfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from wheels import places
from wheels.common import HERE as WHEELS
from wheels.common import PYTHON, ROOT, Failed, cache, environment, run, say, sha256, version
from wheels.static.package import COMMANDS, NAME, platforms, record_digest
from wheels.verdict import FULL, QUICK, Pace, compare, failed, medians, reasons, text, waits

LARGEST = 12_000_000  # bytes of the binary
ELF_MACHINE = {"x86_64": 62, "aarch64": 183}  # e_machine: elf.h
EXECUTABLE, INTERPRETER, DYNAMIC = 2, 3, 2  # e_type, and two p_type, which a static program has not
PAYLOAD = 8 << 20  # bytes that a check moves each way
HANG = 120.0  # seconds
ENGINES = ("splice", "copy")


def validate_one(wheel: Path, machine: str, quick: bool) -> dict[str, Any]:
    """The report about one wheel, in the shape that wheels/validate.py has for each."""
    say(f"{wheel.name}")
    audits = {name: text(partial(audit, wheel, machine)) for name, audit in AUDITS.items()}
    outcome: dict[str, Any] = {"core": "not run", "pytest": "not here: the core check stands in"}
    with tempfile.TemporaryDirectory(prefix="room-", dir=cache()) as folder:
        outcome |= _place(machine)
        say(f"  {outcome['place']}")
        try:
            words = _installed(wheel, machine, Path(folder))
            outcome["core"] = text(partial(core, words))
            pace = QUICK if quick else FULL
            outcome["ratios"] = _measure(words["runcvm-vsock-connect"], Path(folder), outcome["emulated"], pace)
            outcome["waits"] = {} if outcome["emulated"] else waits(words | {"interpreter": [PYTHON]}, pace)
        except Failed as error:
            outcome["failure"] = failed(error)
    return {
        "name": wheel.name,
        "sha256": sha256(wheel),
        "bytes": wheel.stat().st_size,
        "audits": audits,
        "runs": [outcome],
        "reasons": reasons(audits, [outcome]),
    }


def contents(wheel: Path, machine: str) -> str:
    """Compare the list of files with what belongs there, and each with RECORD. Raises `Failed`."""
    stem = f"{NAME}-{version()}"
    scripts = [f"{stem}.data/scripts/{command}" for command in COMMANDS]
    about = ("METADATA", "RECORD", "WHEEL", "licenses/LICENSE", "licenses/NOTICE")
    info = [f"{stem}.dist-info/{name}" for name in about]
    with zipfile.ZipFile(wheel) as archive:
        files = {name: archive.read(name) for name in archive.namelist()}
        modes = {name: archive.getinfo(name).external_attr >> 16 for name in files}
    if sorted(files) != sorted([*scripts, *info]):
        raise Failed(f"has other files: {sorted({*files} ^ {*scripts, *info})}")
    record = files.pop(f"{stem}.dist-info/RECORD").decode().splitlines()
    if {f"{name},{record_digest(data)},{len(data)}" for name, data in files.items()} != {*record[:-1]}:
        raise Failed("RECORD says something else than the files")
    tags = [f"Tag: py3-none-{platform}" for platform in platforms(machine)]
    if [line for line in files[f"{stem}.dist-info/WHEEL"].decode().splitlines() if line.startswith("Tag: ")] != tags:
        raise Failed("WHEEL has other tags than the name")
    if len({files[name] for name in scripts}) != 1 or any(modes[name] != 0o100755 for name in scripts):
        raise Failed("the commands are not one and the same executable")
    if files[f"{stem}.dist-info/licenses/LICENSE"] != (ROOT / "LICENSE").read_bytes():
        raise Failed("has another LICENSE")
    return f"{len(COMMANDS)} commands, licences"


def static(wheel: Path, machine: str) -> str:
    """Read the ELF header: for this machine, and loaded by the kernel alone. Raises `Failed`."""
    data = _binary(wheel)
    kind, number = struct.unpack_from("<HH", data, 16)
    (table,) = struct.unpack_from("<Q", data, 32)
    size, count = struct.unpack_from("<HH", data, 54)
    segments = {struct.unpack_from("<I", data, table + size * index)[0] for index in range(count)}
    if data[:6] != b"\x7fELF\x02\x01" or number != ELF_MACHINE[machine]:
        raise Failed(f"is not an executable for {machine}")
    if kind != EXECUTABLE or segments & {INTERPRETER, DYNAMIC}:
        raise Failed("is not static")
    return f"static, {machine}"


def anonymous(wheel: Path, machine: str) -> str:
    """Look for where it was built. Raises `Failed`."""
    data = _binary(wheel)
    for place in (str(cache()), str(ROOT), str(Path.home()), os.uname().nodename, "site-packages"):
        if len(place) > 3 and place.encode() in data:
            raise Failed(f"names the place where it was built: {place}")
    return "nothing"


def size(wheel: Path, machine: str) -> str:
    """Hold the binary's size against the limit. Raises `Failed`."""
    length = len(_binary(wheel))
    if length > LARGEST:
        raise Failed(f"{length} bytes, more than {LARGEST}")
    return f"{length / 1e6:.1f} MB"


def _twine(wheel: Path, machine: str) -> str:
    run([environment("audit", PYTHON), "-m", "twine", "--no-color", "check", "--strict", wheel], timeout=300)
    return "PASSED"


AUDITS: dict[str, Callable[[Path, str], str]] = {
    "contents": contents,
    "architecture": static,
    "of the build machine": anonymous,
    "size": size,
    "twine check": _twine,
}


def _binary(wheel: Path) -> bytes:
    with zipfile.ZipFile(wheel) as archive:
        return archive.read(f"{NAME}-{version()}.data/scripts/{COMMANDS[0]}")


def _place(machine: str) -> dict[str, Any]:
    emulated = machine != os.uname().machine
    return {"place": f"no Python, {'under qemu-user' if emulated else 'native'}", "emulated": emulated}


def _installed(wheel: Path, machine: str, folder: Path) -> dict[str, list[str]]:
    """Unpack the commands, and return the words that run each. Raises `Failed`."""
    words = {}
    with zipfile.ZipFile(wheel) as archive:
        for command in COMMANDS:
            path = folder / command
            path.write_bytes(archive.read(f"{NAME}-{version()}.data/scripts/{command}"))
            path.chmod(0o755)
            foreign = machine != os.uname().machine
            words[command] = [places.qemu(machine), "-0", command, str(path)] if foreign else [str(path)]
    return words


def core(words: dict[str, list[str]]) -> str:
    """What the binary must do before anything else is asked of it. Raises `Failed`."""
    checks = [partial(_starts, words[command], command) for command in COMMANDS]
    checks += [partial(_refuses, words["runcvm-vsock-connect"])]
    checks += [partial(_moves, words["runcvm-vsock-connect"], engine) for engine in ENGINES]
    checks += [partial(_moves, [*words["fastvsock"], "connect"], engine) for engine in ENGINES]
    checks += [partial(_executes, words["fastvsock"], engine) for engine in ENGINES]
    for check in checks:
        check()
    return f"{len(checks)} checks"


def _starts(words: list[str], command: str) -> None:
    said = run([*words, "--version"], timeout=HANG, env={})
    if said != f"{command} {version()}\n":
        raise Failed(f"{command} --version says {said!r}")


def _refuses(words: list[str]) -> None:
    done = subprocess.run([*words, "/nowhere/v.sock", "7"], capture_output=True, timeout=HANG, check=False)
    if (done.returncode, done.stdout) != (1, b"") or not done.stderr.startswith(b"fastvsock: /nowhere/v.sock: no such"):
        raise Failed(f"a socket that is not there gives exit status {done.returncode} and {done.stderr.decode()!r}")


def _moves(words: list[str], engine: str) -> None:
    payload = os.urandom(PAYLOAD)
    with tempfile.TemporaryDirectory() as folder, socket.socket(socket.AF_UNIX) as server:
        server.settimeout(HANG)
        server.bind(f"{folder}/v.sock")
        server.listen()
        guest = threading.Thread(target=_echo, args=(server,), daemon=True)
        guest.start()
        command = [*words, "--engine", engine, "--stats", f"{folder}/v.sock", "7"]
        done = subprocess.run(command, input=payload, capture_output=True, timeout=HANG, check=False)
        guest.join(HANG)
    _hold_echo(done, payload, engine)


def _executes(words: list[str], engine: str) -> None:
    payload = os.urandom(PAYLOAD)
    with tempfile.TemporaryDirectory() as folder:
        uds = f"{folder}/agent.sock"
        with subprocess.Popen([*words, "agent", "--listen", f"unix:{uds}"], stdout=subprocess.PIPE) as agent:
            assert agent.stdout
            agent.stdout.readline()  # it listens
            command = [*words, "exec", "-i", "--engine", engine, "--stats", uds, "cat"]
            try:
                done = subprocess.run(command, input=payload, capture_output=True, timeout=HANG, check=False)
                _copies([*words, "cp", "--engine", engine], uds, Path(folder), payload)
            finally:
                agent.terminate()
    _hold_echo(done, payload, engine)


def _copies(words: list[str], uds: str, folder: Path, payload: bytes) -> None:
    """A file there and back."""
    sent, there, back = (folder / name for name in ("sent", "there", "back"))
    sent.write_bytes(payload)
    for source, target in ((str(sent), f":{there}"), (f":{there}", str(back))):
        run([*words, uds, source, target], timeout=HANG)
    if back.read_bytes() != payload:
        raise Failed("a file came back from the guest as another one")


def _hold_echo(done: subprocess.CompletedProcess[bytes], payload: bytes, engine: str) -> None:
    digests = [hashlib.sha256(data).hexdigest() for data in (payload, done.stdout)]
    if done.returncode or digests[0] != digests[1] or done.stderr.decode().count(f", {engine};") != 2:
        raise Failed(f"an echo with {engine} ended with status {done.returncode} and {done.stderr.decode()!r}")


def _echo(server: socket.socket) -> None:
    connection, _ = server.accept()
    with connection:
        while connection.recv(1) != b"\n":
            pass
        connection.sendall(b"OK 1073741824\n")
        while data := connection.recv(1 << 16):
            connection.sendall(data)


def _measure(words: list[str], folder: Path, emulated: bool, pace: Pace) -> dict[str, Any]:
    """CPU seconds a GiB of each engine and way, and the ratios within each round."""
    script = shutil.copy(Path(__file__).with_name("throughput.py"), folder)
    (folder / "wheels").mkdir()
    shutil.copy(WHEELS / "feeding.py", folder / "wheels")
    mebibytes = pace.emulated if emulated else pace.native
    python = environment("run", PYTHON)
    options: list[str | Path] = ["--quiet", f"--connect={shlex.join(words)}", f"--mebibytes={mebibytes}"]
    rounds = []
    for number in range(pace.rounds):
        result = folder / f"round-{number}.json"
        order = ["--reverse"] if number % 2 else []
        run([python, script, *options, *order, "-o", result], cwd=folder, timeout=900)
        rounds.append(medians(result))
    return {way: compare(rounds, way) for way in ("up", "down")}
