"""`fastvsock cp` with a real guest: everything that a tree has, a large file in pieces, and an agent of ill will."""

import hashlib
import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from fastvsock.channels import protocol
from fastvsock.copying import entries
from fastvsock.copying.entries import ENTER, FILE, LEAVE, SYMLINK, Entry
from support import HANG, started
from support.channels import REAL_GUEST as GUEST
from support.channels import exec_in, executing, within
from support.copying import copied, cp, cp_command, make_tree, sent, snapshot

pytestmark = pytest.mark.skipif(not GUEST.uds, reason="by design: runs inside the VM harness")

SIZE = 64 << 20
HOSTILE_PORT = 1500
# Ends the agent's process of a copy once that has written more than a MiB of the file in folder $1.
END_THE_COPY = """
until [ "$(stat -c %s "$1"/.fastvsock-* 2>/dev/null || echo 0)" -gt 1048576 ]; do sleep 0.1; done
for folder in /proc/[0-9]*; do
    [ "$(readlink $folder/exe)" = /.runcvm/guest/bin/fastvsock ] || continue
    [ "$(cut -d' ' -f4 $folder/stat)" = $PPID ] && kill -9 ${folder#/proc/}
done
"""


@pytest.fixture
def there(tmp_path: Path) -> Iterator[str]:
    """A folder in the guest."""
    folder = f"/tmp/{tmp_path.name}"
    exec_in(GUEST, "mkdir", folder)
    yield folder
    exec_in(GUEST, "rm", "-r", folder)


def test_a_tree_goes_in_and_comes_back_as_it_was(engine: str, tmp_path: Path, there: str) -> None:
    tree = make_tree(tmp_path / "tree")
    copied(GUEST, tree, f":{there}", engine=engine)
    copied(GUEST, f":{there}/tree", tmp_path / "back", engine=engine)
    assert snapshot(tmp_path / "back") == snapshot(tree)


def test_a_large_file_is_resumed_each_way_after_an_end_in_the_middle(tmp_path: Path, there: str) -> None:
    """Up, the agent's process is killed; down, the client is."""
    source, back = tmp_path / "large", tmp_path / "back"
    source.write_bytes(os.urandom(1 << 20) * (SIZE >> 20))
    digest = hashlib.sha256(source.read_bytes()).hexdigest()
    back.mkdir()

    with executing(GUEST, "sh", "-c", END_THE_COPY, "sh", there) as killer:
        assert cp(GUEST, source, f":{there}").returncode == 125
        assert killer.wait(HANG) == 0
    assert exec_in(GUEST, "ls", there).stdout == b""
    assert resumed(source, f":{there}") < SIZE
    assert exec_in(GUEST, "sha256sum", f"{there}/large").stdout.split()[0].decode() == digest

    with started(cp_command(GUEST, f":{there}/large", back)) as client:
        assert within(HANG, lambda: any(path.stat().st_size > 1 << 20 for path in back.iterdir()))
        client.kill()
        client.wait(HANG)
    assert not (back / "large").exists()
    assert resumed(f":{there}/large", back) < SIZE
    assert hashlib.sha256((back / "large").read_bytes()).hexdigest() == digest


def resumed(*words: str | Path) -> int:
    """Go on with a copy, and how many bytes of content that took."""
    return int(json.loads(copied(GUEST, "--resume", "--json", *words).stdout.splitlines()[-1])["bytes"])


def folder(name: bytes = b"top") -> bytes:
    return Entry(name, 0o755).encode(ENTER)


def small(name: bytes) -> bytes:
    return Entry(name, 0o644, size=4, flags=entries.INLINE, rest=b"evil").encode(FILE)


LEAVES = Entry(b"top").encode(LEAVE)
ATTACKS: dict[str, tuple[Callable[[bytes], list[bytes]], int, str]] = {
    "a name with ..": (lambda victim: [folder(), small(b"../victim/evil"), LEAVES], 125, "sent an entry called"),
    "an absolute name": (lambda victim: [folder(), small(victim + b"/evil"), LEAVES], 125, "sent an entry called"),
    "through a link": (
        lambda victim: [
            folder(),
            Entry(b"out", rest=victim).encode(SYMLINK),
            folder(b"out"),
            small(b"precious"),
            LEAVES,
            LEAVES,
        ],
        1,
        "/top/out: not copied into the link of this name: ",
    ),
    "a size beyond all files": (
        lambda victim: [folder(), Entry(b"f", size=1 << 63).encode(FILE), LEAVES],
        125,
        "the guest's agent sent ",
    ),
    "no frames": (lambda victim: [b"SSH-2.0-dropbear\r\n"], 125, "the guest's agent sent "),
}


@pytest.fixture(scope="module")
def hostile() -> Iterator[Callable[[bytes], None]]:
    """An agent of ill will in the guest, which says what the test gives it."""
    serve = f"exec socat VSOCK-LISTEN:{HOSTILE_PORT},reuseaddr,fork SYSTEM:'cat /tmp/hostile; cat >/dev/null'"
    with executing(GUEST, "sh", "-c", serve):

        def says(data: bytes) -> None:
            exec_in(GUEST, "sh", "-c", "cat >/tmp/hostile", input=data)

        yield says


@pytest.mark.parametrize("attack", ATTACKS)
def test_what_a_guest_sends_stays_in_the_target(
    engine: str, hostile: Callable[[bytes], None], tmp_path: Path, attack: str
) -> None:
    frames, status, sentence = ATTACKS[attack]
    victim, target = tmp_path / "victim", tmp_path / "target"
    victim.mkdir()
    target.mkdir()
    (victim / "precious").write_bytes(b"mine")
    begin = protocol.started() + entries.pair(entries.SOURCE, 0)
    hostile(begin + b"".join(sent(*frames(os.fsencode(victim)))) + protocol.exited(0))
    done = cp(GUEST, f"--port={HOSTILE_PORT}", ":/top", target, engine=engine)
    assert (done.returncode, sentence in done.stderr.decode()) == (status, True), done.stderr
    assert [path.name for path in victim.iterdir()] == ["precious"]
    assert (victim / "precious").read_bytes() == b"mine"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["target", "victim"]
