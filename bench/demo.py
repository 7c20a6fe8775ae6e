"""`make demo`: the main job on real input, with each engine, and a check of every byte.

A tree of real files (copies of Python's standard library, 100 MB in all) is sent as a tar stream through
`runcvm-vsock-connect` to a `tar x` behind the emulator, as `kubectl cp` sends it into a guest, and is fetched back
from a `tar c` there. Then the SHA-256 of every file is compared with the original's.
"""

import hashlib
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, NamedTuple

from fastvsock.engines import choose

ENOUGH = 100_000_000  # bytes
INTO, FROM = 1000, 1001  # guest ports
EXEC = "exec"
Stream = IO[bytes] | None
CONNECT = [sys.executable, "-m", "fastvsock.runcvm_vsock_connect", "--stats"]


class Move(NamedTuple):
    """One way with one engine: payload bytes, wall time and the forwarder's CPU time in seconds."""

    way: str
    engine: str
    size: int
    seconds: float
    cpu: float

    def __str__(self) -> str:
        rate, cost = self.size / self.seconds / 2**20, self.cpu / self.size * 2**30
        return f"{self.way:5} {self.engine:7} {self.size / 1e6:7.1f} MB {self.seconds:7.2f} s {rate:7.0f} {cost:11.3f}"


def main() -> None:
    """Run the demo; exits with 1 if a file does not come back as it was."""
    engines = ["splice", "copy"] if choose("auto") == "splice" else ["copy"]
    with tempfile.TemporaryDirectory(prefix="fastvsock-demo-") as folder:
        here = Path(folder)
        files, size = collect(here / "tree")
        print(f"tree: {files} files, {size / 1e6:.1f} MB, from {sysconfig.get_path('stdlib')}")
        expected = hashes(here / "tree")
        moves = [move for how in (*engines, EXEC) for move in there_and_back(here, how, expected)]
    print(f"all {files} files came back with the same SHA-256, with {' and with '.join((*engines, EXEC))}\n")
    print("way   engine     payload      time   MiB/s  CPU s/GiB")
    for move in sorted(moves, key=lambda move: move.way, reverse=True):
        print(move)
    print("\nexec is `fastvsock exec`, which runs tar in the guest by the agent there.")
    print("Time includes tar and the disk at both ends; CPU is the forwarder's alone, its start included.")
    if len(engines) == 1:
        print("The splice engine is not built here: with a C compiler, `make clean demo` shows both.")


def collect(tree: Path) -> tuple[int, int]:
    """Copy the standard library to `tree` until there is enough of it: the number of files and their bytes."""
    sizes: list[int] = []
    while sum(sizes) < ENOUGH:
        copy = tree / f"copy-{len(list(tree.glob('*')))}"
        shutil.copytree(sysconfig.get_path("stdlib"), copy, ignore=shutil.ignore_patterns("site-packages", "lib*.a"))
        sizes += [path.stat().st_size for path in copy.rglob("*") if path.is_file()]
    return len(sizes), sum(sizes)


def hashes(tree: Path) -> dict[str, str]:
    """The SHA-256 of every file below `tree`."""
    return {
        str(path.relative_to(tree)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in tree.rglob("*")
        if path.is_file()
    }


def there_and_back(here: Path, how: str, expected: dict[str, str]) -> Iterator[Move]:
    """Send the tree with one engine, or with `fastvsock exec`, fetch it back, and compare."""
    guest, back = here / f"guest-{how}", here / f"back-{how}"
    guest.mkdir()
    back.mkdir()
    with emulator(here / "v.sock", guest) as uds:
        pack = subprocess.Popen(["tar", "cf", "-", "-C", here / "tree", "."], stdout=subprocess.PIPE)
        into = ["tar", "xf", "-", "-C", str(guest)] if how == EXEC else [str(INTO)]
        yield forward("up", how, uds, into, stdin=pack.stdout)
        unpack = subprocess.Popen(["tar", "xf", "-", "-C", back], stdin=subprocess.PIPE)
        out = ["tar", "cf", "-", "-C", str(guest), "."] if how == EXEC else [str(FROM)]
        yield forward("down", how, uds, out, stdout=unpack.stdin)
        for tar in pack, unpack:
            for stream in tar.stdin, tar.stdout:
                if stream:
                    stream.close()
            if tar.wait():
                sys.exit(f"tar ended with {tar.returncode}")
    if hashes(back) != expected:
        sys.exit(f"the files that came back with {how} differ from those sent")
    shutil.rmtree(guest)
    shutil.rmtree(back)


@contextmanager
def emulator(uds: Path, guest: Path) -> Iterator[Path]:
    """The stand-in for a VMM, with a guest that unpacks into, and packs from, the folder `guest`."""
    arguments = [sys.executable, "-m", "fastvsock", "emulate", "--agent", str(uds)]
    services = [f"--exec={INTO}=tar xf - -C {guest}", f"--exec={FROM}=tar cf - -C {guest} ."]
    with subprocess.Popen([*arguments, *services], stdout=subprocess.PIPE) as child:
        assert child.stdout is not None
        if not child.stdout.readline():
            sys.exit("the emulator did not start")
        try:
            yield uds
        finally:
            child.terminate()


def forward(way: str, how: str, uds: Path, words: list[str], stdin: Stream = None, stdout: Stream = None) -> Move:
    """Run the forwarder, or `fastvsock exec`, once and read its statistics."""
    started = time.monotonic()
    program = [sys.executable, "-m", "fastvsock", EXEC, "--stats", "-i"] if how == EXEC else [*CONNECT, "--engine", how]
    done = subprocess.run(
        [*program, str(uds), *words],
        stdin=stdin or subprocess.DEVNULL,
        stdout=stdout or subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        check=False,
    )
    seconds = time.monotonic() - started
    if done.returncode:
        sys.exit(done.stderr)
    stats = re.search(rf"{way} (\d+) bytes, \S+ MiB/s, (\S+);.* CPU (\S+) s", done.stderr)
    assert stats, done.stderr
    return Move(way, EXEC if how == EXEC else stats[2], int(stats[1]), seconds, float(stats[3]))


if __name__ == "__main__":
    if not shutil.which("tar"):
        sys.exit("the demo needs tar")
    os.environ.pop("FASTVSOCK_ENGINE", None)
    main()
