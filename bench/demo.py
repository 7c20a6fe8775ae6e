"""`make demo`: the main job on real input, in every way that there is, and a check of every byte.

A tree of real files (Python's standard library, or the folder that is given) goes into the guest behind the emulator,
and comes back: as a tar stream through `runcvm-vsock-connect` with each engine, as `kubectl cp` sends it; through
`fastvsock exec`; by `fastvsock cp`; and, where dropbear is installed, through dbclient, as before fastvsock. Each time
the SHA-256 of every file is compared with the original's.
"""

import hashlib
import os
import shutil
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import NamedTuple

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from fastvsock.engines import choose
from support.ssh import missing_for_guest, shell_guest

INTO, FROM = 1000, 1001  # guest ports
PROGRAM = [sys.executable, "-m", "fastvsock"]
CONNECT = [sys.executable, "-m", "fastvsock.runcvm_vsock_connect"]
HANG = 300  # seconds
ENOUGH = 1 << 30  # bytes
STARTS = 3  # of a command that does nothing, of which the fastest counts


class Way(NamedTuple):
    """How the tree gets into the guest and back: two commands. A tar stream is their stdin and stdout if `tar`."""

    title: str
    there: list[str]
    back: list[str]
    tar: bool = True


class Place(NamedTuple):
    """The tree on the host, the guest's folder for it, and where it comes back to."""

    tree: Path
    guest: Path
    back: Path


def main() -> None:
    """Run the demo; exits with 1 if a file does not come back as it was."""
    source = sys.argv[1] if sys.argv[1:] else sysconfig.get_path("stdlib")
    with tempfile.TemporaryDirectory(prefix="fastvsock-demo-", dir=memory()) as folder, ExitStack() as undo:
        place = Place(*(Path(folder) / name for name in ("tree", "guest", "back")))
        shutil.copytree(source, place.tree, ignore=shutil.ignore_patterns("site-packages", "lib*.a"))
        expected = hashes(place.tree)
        size = sum((place.tree / name).stat().st_size for name in expected)
        print(f"tree: {len(expected)} files, {size / 1e6:.1f} MB, from {source}, in {folder}\n")
        uds = undo.enter_context(emulator(Path(folder) / "v.sock", place.guest))
        ways, nothing = fast_ways(uds, place), [*PROGRAM, "exec", uds, "true"]
        ssh: list[str] = []
        if reason := missing_for_guest():
            print(f"without dbclient: {reason}")
        else:
            (Path(folder) / "ssh").mkdir()
            ssh = undo.enter_context(shell_guest(Path(folder) / "ssh")).direct()
            ways.append(Way("tar through dbclient", [*ssh, unpack(place.guest)], [*ssh, f"{pack(place.guest)}; cat"]))
        print(f"{'':36} there     back   MiB/s")
        seconds = [there_and_back(way, place, expected, size) for way in ways]
        print(
            f"\nall {len(expected)} files came back with the same SHA-256 each time; time includes tar and both disks\n"
        )
        tell(ways, seconds, fastest(nothing), fastest([*ssh, "true"]) if ssh else None)


def memory() -> str | None:
    """A folder in memory where there is one with room for the trees: disks are slower than all of the ways."""
    where = Path("/dev/shm")
    return str(where) if where.is_dir() and shutil.disk_usage(where).free >= ENOUGH else None


def fast_ways(uds: str, place: Place) -> list[Way]:
    """The ways of fastvsock; the first one and the last are what the story is about."""
    engines = ["splice", "copy"] if choose("auto") == "splice" else ["copy"]
    ways = []
    for engine in engines:
        forwarder = [*CONNECT, "--engine", engine, uds]
        ways.append(Way(f"tar through the forwarder ({engine})", [*forwarder, str(INTO)], [*forwarder, str(FROM)]))
    execute = [*PROGRAM, "exec", "-i", uds, "sh", "-c"]
    ways.append(Way("tar through fastvsock exec", [*execute, unpack(place.guest)], [*execute, pack(place.guest)]))
    copy = [*PROGRAM, "cp", uds]
    there, back = [*copy, f"{place.tree}/.", f":{place.guest}"], [*copy, f":{place.guest}/.", str(place.back)]
    ways.append(Way("fastvsock cp", there, back, tar=False))
    return ways


def pack(folder: Path) -> str:
    """The shell's command that writes what is in a folder to stdout."""
    return f"tar cf - -C {folder} ."


def unpack(folder: Path) -> str:
    """The shell's command that reads it from stdin."""
    return f"tar xf - -C {folder}"


@contextmanager
def emulator(uds: Path, guest: Path) -> Iterator[str]:
    """The stand-in for a VMM, with an agent, and a guest that unpacks into, and packs from, the folder `guest`."""
    services = [f"--exec={INTO}={unpack(guest)}", f"--exec={FROM}={pack(guest)}"]
    with subprocess.Popen([*PROGRAM, "emulate", "--agent", str(uds), *services], stdout=subprocess.PIPE) as child:
        assert child.stdout is not None
        if not child.stdout.readline():
            sys.exit("the emulator did not start")
        try:
            yield str(uds)
        finally:
            child.terminate()


def there_and_back(way: Way, place: Place, expected: dict[str, str], size: int) -> float:
    """Send the tree, fetch it back and compare: the seconds of both ways."""
    place.guest.mkdir()
    place.back.mkdir()
    os.sync()  # nobody pays for what others have written
    started = time.monotonic()
    run([*pack(place.tree).split()] if way.tar else None, way.there)
    middle = time.monotonic()
    run(None, way.back, [*unpack(place.back).split()] if way.tar else None)
    there, back = middle - started, time.monotonic() - middle
    if hashes(place.back) != expected:
        sys.exit(f"{way.title}: the files that came back differ from those sent")
    shutil.rmtree(place.guest)
    shutil.rmtree(place.back)
    print(f"{way.title:34} {there:5.2f} s  {back:5.2f} s  {2 * size / (there + back) / 2**20:6.0f}")
    return there + back


def run(before: list[str] | None, command: list[str], after: list[str] | None = None) -> None:
    """Run a command, its stdin what `before` writes, its stdout what `after` reads; exits where one of them fails.

    Without `before`, stdin stays open until `after` has all: dropbear may hang with output of a shell that has ended.
    """
    first = subprocess.Popen(before, stdout=subprocess.PIPE) if before else None
    child = subprocess.Popen(
        command,
        stdin=first.stdout if first else subprocess.PIPE,
        stdout=subprocess.PIPE if after else None,
        stderr=subprocess.PIPE,
    )
    assert child.stderr
    last = subprocess.Popen(after, stdin=child.stdout) if after else None
    for stream in (first and first.stdout, child.stdout):
        if stream:
            stream.close()
    for process in (last, first):
        if process and process.wait(HANG):
            sys.exit(f"{process.args!r} ended with {process.returncode}")
    if child.stdin:
        child.stdin.close()
    message = child.stderr.read().decode(errors="replace")
    child.stderr.close()
    if child.wait(HANG):
        sys.exit(f"{command} ended with {child.returncode}: {message}")


def hashes(tree: Path) -> dict[str, str]:
    """The SHA-256 of every file below `tree`."""
    return {
        str(path.relative_to(tree)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in tree.rglob("*")
        if path.is_file()
    }


def fastest(command: list[str]) -> float:
    """The seconds that a command takes which does nothing."""
    times = []
    for _ in range(STARTS):
        started = time.monotonic()
        run(None, command)
        times.append(time.monotonic() - started)
    return min(times)


def tell(ways: list[Way], seconds: list[float], exec_true: float, ssh_true: float | None) -> None:
    """Print the story in four lines."""
    by_ssh = seconds[-1] if ssh_true is not None else None
    (copy,) = (number for number, way in enumerate(ways) if not way.tar)
    print("In short, and what dbclient and dropbear take over the same connection:")
    for title, ours, theirs in (
        ("the tree there and back by tar through the forwarder", seconds[0], by_ssh),
        ("the tree there and back by fastvsock cp", seconds[copy], by_ssh),
        ("a command by fastvsock exec", exec_true, ssh_true),
    ):
        beside = f"{theirs:6.2f} s, {theirs / ours:4.1f} times as long" if theirs is not None else "not installed"
        print(f"  {title:52} {ours:5.2f} s  {beside}")


if __name__ == "__main__":
    if not shutil.which("tar"):
        sys.exit("the demo needs tar")
    os.environ.pop("FASTVSOCK_ENGINE", None)
    main()
