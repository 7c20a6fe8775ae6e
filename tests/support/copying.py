"""What the tests of copies share: trees with everything in them, what a tree is, and a far end that a test controls."""

import os
import socket
import stat
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from fastvsock.channels import protocol
from fastvsock.copying import entries
from support import HANG
from support.channels import Guest, Peer, umbrella

ODD_NAMES = [
    b"a b",
    b"a\nb",
    b"\xff\xfe",
    b"\x1b[31mred",
    "Ä €".encode(),
    b"-rf",
    b":x",
    b"'\"\\$`",
    b"x" * 255,
    b"...",
]


def cp_arguments(guest: Guest, *words: str | Path, engine: str = "auto") -> list[str]:
    """The arguments with which `fastvsock` copies; options come first in `words`."""
    at = next(number for number, word in enumerate(words) if not str(word).startswith("-") or word == "-")
    options, paths = words[:at], words[at:]
    return ["cp", "--engine", engine, *map(str, options), guest.uds, *map(str, paths)]


def cp_command(guest: Guest, *words: str | Path, engine: str = "auto") -> list[str]:
    """The command line of `fastvsock cp`; options come first in `words`."""
    return umbrella(*cp_arguments(guest, *words, engine=engine))


def cp(guest: Guest, *words: str | Path, engine: str = "auto", **kinds: Any) -> subprocess.CompletedProcess[bytes]:
    """Run `fastvsock cp` to its end."""
    return subprocess.run(
        cp_command(guest, *words, engine=engine), capture_output=True, timeout=HANG, check=False, **kinds
    )


def copied(guest: Guest, *words: str | Path, engine: str = "auto", **kinds: Any) -> subprocess.CompletedProcess[bytes]:
    """Run `fastvsock cp`, which must copy everything and print nothing."""
    done = cp(guest, *words, engine=engine, **kinds)
    assert (done.returncode, done.stderr) == (0, b""), done.stderr
    return done


def words(way: str, *paths: Path | str) -> list[str]:
    """Sources and a target as the command has them: the guest's have a colon."""
    *sources, target = map(str, paths)
    return [*sources, f":{target}"] if way == "put" else [*(f":{source}" for source in sources), target]


def leftovers(folder: Path) -> list[Path]:
    """The files of copies that are under way, or have been interrupted."""
    return [path for path in folder.iterdir() if path.name.startswith(".fastvsock-")]


def snapshot(root: Path | bytes) -> dict[bytes, tuple[object, ...]]:
    """All that a copy keeps of a tree, by paths below its root; files with several names have the first in common."""
    top = os.fsencode(root)
    found: dict[bytes, tuple[object, ...]] = {}
    first: dict[int, bytes] = {}
    for folder, folders, files in os.walk(top):
        folders.sort()
        for name in sorted([*folders, *files, b"."]):
            path = os.path.join(folder, name)
            status = os.lstat(path)
            content: object = None
            if stat.S_ISREG(status.st_mode):
                content = Path(os.fsdecode(path)).read_bytes()
            elif stat.S_ISLNK(status.st_mode):
                content = os.readlink(path)
            below = os.path.relpath(path, top)
            link = first.setdefault(status.st_ino, below) if stat.S_ISREG(status.st_mode) else b""
            found[below] = status.st_mode, status.st_uid, status.st_gid, status.st_mtime_ns, content, link
    return found


def make_tree(root: Path) -> Path:
    """A tree with one of everything that a copy keeps."""
    (root / "sub" / "below").mkdir(parents=True)
    (root / "empty").mkdir(mode=0o700)
    (root / "file").write_bytes(b"content")
    (root / "nothing").touch()
    (root / "large").write_bytes(os.urandom(3_000_001))
    (root / "exactly").write_bytes(os.urandom(entries.SMALL))
    (root / "sub" / "program").write_bytes(b"#!/bin/sh\n")
    (root / "sub" / "program").chmod(0o755)
    (root / "sub" / "below" / "secret").write_bytes(b"s")
    (root / "sub" / "below" / "secret").chmod(0o400)
    (root / "sub" / "link").symlink_to("../file")
    (root / "dangling").symlink_to("/nothing/is/here")
    (root / "sub" / "again").hardlink_to(root / "file")
    (root / "sub" / "large-again").hardlink_to(root / "large")
    os.mkfifo(root / "fifo", 0o640)
    for name in ODD_NAMES:
        Path(os.fsdecode(os.path.join(os.fsencode(root), name))).write_bytes(name)
    os.utime(root / "file", ns=(1, 981173106_123456789))
    os.utime(root / "sub", ns=(1, -1_000_000_001))
    os.utime(root / "sub" / "link", ns=(1, 1_234_567_891_000_000_001), follow_symlinks=False)
    return root


class FarEnd(Peer):
    """The other end of a copy, by hand: it sends what it likes."""

    def put(self, *frames: bytes) -> None:
        """Send frames as they are; a client that has gone does not mind."""
        try:
            self.sock.sendall(b"".join(frames))
        except OSError:
            pass

    def drain(self) -> bytes:
        """Everything that still comes."""
        data = b""
        try:
            while part := self.sock.recv(1 << 16):
                data += part
        except OSError:
            pass
        return data


@contextmanager
def agent_that(uds: Path, act: Callable[[FarEnd], None]) -> Iterator[Guest]:
    """An agent of ill will: it takes one request, says that it has begun, and then `act` has the connection."""
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(uds))
    listener.listen()
    listener.settimeout(HANG)

    def serve() -> None:
        try:
            sock, _ = listener.accept()
        except OSError:
            return
        with sock:
            end = FarEnd(sock)
            while end._exactly(1) != b"\n":
                pass
            sock.sendall(b"OK 1073741824\n")
            end.receive()
            end.put(protocol.started())
            act(end)
            end.drain()

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    try:
        yield Guest(str(uds), None)  # type: ignore[arg-type]
    finally:
        listener.close()
        thread.join(HANG)


def attack(*frames: bytes, source: int = 0) -> Callable[[FarEnd], None]:
    """An agent's answer to GET: the source, these frames, and the channel's end."""

    def act(end: FarEnd) -> None:
        end.put(entries.pair(entries.SOURCE, source), *frames, protocol.exited(0))

    return act


def sent(*frames: bytes) -> Sequence[bytes]:
    """The frames and an end that fits them: as many entries as there are, no content but in small files."""
    kinds = [frame[0] for frame in frames]
    size = sum(int.from_bytes(frame[29:37], "big") for frame in frames if frame[0] == entries.FILE)
    return [*frames, entries.pair(entries.FINISH, sum(kind in entries.NUMBERED for kind in kinds), size)]


# The command on a disk that fails: what is read or written behind the first MiB of a file ends with an errno.
_ON_A_FAILING_DISK = """
import os, stat, sys

number = int(sys.argv.pop(1))

def failing(call, position):
    def attempt(*arguments, **more):
        if position(*arguments) >= 1 << 20:
            raise OSError(number, os.strerror(number))
        return call(*arguments, **more)
    return attempt

def size(fd):
    status = os.fstat(fd)
    return status.st_size if stat.S_ISREG(status.st_mode) else 0

os.sendfile = failing(os.sendfile, lambda out, file, offset, count: offset)
os.preadv = failing(os.preadv, lambda file, buffers, offset: offset)
os.write = failing(os.write, lambda file, data: size(file))
os.splice = failing(os.splice, lambda source, file, count: size(file))
from fastvsock.cli.umbrella import main
main()
"""


def cp_on_a_failing_disk(
    number: int, guest: Guest, *words: str | Path, engine: str
) -> subprocess.CompletedProcess[bytes]:
    """Run `fastvsock cp` where the host's disk ends with this errno behind the first MiB of any file."""
    command = [sys.executable, "-c", _ON_A_FAILING_DISK, str(number), *cp_arguments(guest, *words, engine=engine)]
    return subprocess.run(command, capture_output=True, timeout=HANG, check=False)
