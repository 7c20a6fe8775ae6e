"""What a guest sends never leaves the target folder, whatever it sends; nor does what a client sends to an agent.

Every way out that is tried here leads to a folder of the test: code that is broken shall harm nothing else.
"""

import copy
import io
import os
import stat
import tarfile
from pathlib import Path

import pytest

from fastvsock.channels import protocol
from fastvsock.channels.protocol import Request
from fastvsock.copying import entries
from fastvsock.copying.entries import DATA, ENTER, FIFO, FILE, KEPT, LEAVE, LINK, SYMLINK, Entry
from support.channels import Guest, dial_agent
from support.copying import FarEnd, agent_that, attack, cp, sent


def raw(kind: int, name: bytes, *, mode: int = 0o644, size: int = 0, flags: int = 0, rest: bytes = b"") -> bytes:
    """An entry as nobody checked it."""
    return Entry(name, mode, 0, 0, 0, size, flags=flags, rest=rest).encode(kind)


def folder(name: bytes = b"top") -> bytes:
    return raw(ENTER, name, mode=0o755)


def leave() -> bytes:
    return raw(LEAVE, b"top")


def small(name: bytes, content: bytes = b"evil", mode: int = 0o644) -> bytes:
    return raw(FILE, name, mode=mode, size=len(content), flags=entries.INLINE, rest=content)


class Result:
    """What a hostile agent has achieved: what the client printed, and what there is outside the target."""

    def __init__(self, status: int, stderr: str, target: Path) -> None:
        self.status, self.stderr, self.target = status, stderr, target


@pytest.fixture
def victim(tmp_path: Path) -> Path:
    """A folder beside the target, which no copy is about."""
    (tmp_path / "victim").mkdir()
    (tmp_path / "victim" / "precious").write_bytes(b"mine")
    return tmp_path / "victim"


WITH_LINKS = pytest.mark.parametrize("options", [(), ("--keep-dirlinks",)])


def copy_from(tmp_path: Path, *frames: bytes, engine: str, source: int = 0, options: tuple[str, ...] = ()) -> Result:
    """Copy ``:/top`` from an agent that answers with `frames`, into the folder "target"."""
    target = tmp_path / "target"
    target.mkdir(exist_ok=True)
    with agent_that(tmp_path / "agent.sock", attack(*frames, source=source)) as guest:
        done = cp(guest, *options, ":/top", target, engine=engine)
    (tmp_path / "agent.sock").unlink()
    return Result(done.returncode, done.stderr.decode(), target)


def assert_untouched(tmp_path: Path, victim: Path) -> None:
    assert [path.name for path in victim.iterdir()] == ["precious"]
    assert (victim / "precious").read_bytes() == b"mine"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["target", "victim"]


@pytest.mark.parametrize(
    "name",
    [b"..", b".", b"", b"../victim/evil", b"VICTIM/evil", b"a/b", b"a\0b", b"x" * 254 + b"/", b"..\0", b"VICTIM"],
)
@pytest.mark.parametrize("kind", [FILE, ENTER, SYMLINK, FIFO, LINK])
def test_a_name_that_none_can_have_ends_the_copy(
    tmp_path: Path, victim: Path, engine: str, name: bytes, kind: int
) -> None:
    """CVE-2018-1002100: kubectl cp wrote where a name with ".." led."""
    name = name.replace(b"VICTIM", os.fsencode(victim))
    bad = raw(kind, name, flags=entries.INLINE if kind == FILE else 0, rest=b"x" if kind == SYMLINK else b"")
    found = copy_from(tmp_path, *sent(folder(), small(b"good", b"ok"), bad), engine=engine)
    assert found.status == 125
    assert "the guest's agent sent an entry called" in found.stderr
    assert found.stderr.count("\n") == 1
    assert_untouched(tmp_path, victim)


def test_what_the_source_is_called_is_not_the_guests_affair(tmp_path: Path, victim: Path, engine: str) -> None:
    """CVE-2019-11249: a guest chose names that kubectl cp had not asked for."""
    found = copy_from(tmp_path, *sent(small(b"another")), engine=engine)
    assert (found.status, found.stderr) == (0, "")
    assert os.listdir(found.target) == ["top"]


def test_one_source_is_one_entry(tmp_path: Path, victim: Path, engine: str) -> None:
    """CVE-2019-11249 again: more than what was asked for."""
    found = copy_from(tmp_path, *sent(small(b"top"), small(b"more")), engine=engine)
    assert found.status == 125
    assert os.listdir(found.target) == ["top"]


@WITH_LINKS
def test_a_path_does_not_lead_through_a_link_that_was_sent_before(
    tmp_path: Path, victim: Path, engine: str, options: tuple[str, ...]
) -> None:
    """CVE-2019-1002101, CVE-2019-11246, CVE-2019-11251: a link out of the target, and then a file through it."""
    frames = sent(
        folder(),
        raw(SYMLINK, b"out", rest=os.fsencode(victim)),
        raw(ENTER, b"out", mode=0o777),
        small(b"precious"),
        small(b"evil"),
        leave(),
        leave(),
    )
    found = copy_from(tmp_path, *frames, engine=engine, options=options)
    assert found.status == 1
    assert "fastvsock: :/top/out: not copied into the link of this name" in found.stderr
    assert "fastvsock: :/top/out/evil: the folder could not be written\n" in found.stderr
    assert_untouched(tmp_path, victim)


@pytest.mark.parametrize("to", [b"../../victim", b"../../victim/precious", b"../..", b"."])
@WITH_LINKS
def test_links_that_chain_do_not_lead_out_either(
    tmp_path: Path, victim: Path, engine: str, to: bytes, options: tuple[str, ...]
) -> None:
    """CVE-2019-11251: the first link is inside, and the second leads out through it."""
    frames = sent(
        folder(),
        raw(SYMLINK, b"a", rest=to),
        raw(SYMLINK, b"b", rest=b"a"),
        raw(ENTER, b"b", mode=0o755),
        small(b"precious"),
        leave(),
        small(b"a", b"replaced"),
        leave(),
    )
    found = copy_from(tmp_path, *frames, engine=engine, options=options)
    assert found.status == 1
    assert (found.target / "top" / "a").read_bytes() == b"replaced"
    assert not (found.target / "top" / "a").is_symlink()
    assert_untouched(tmp_path, victim)


def test_the_source_itself_is_not_a_way_out(tmp_path: Path, victim: Path, engine: str) -> None:
    """CVE-2018-1002100 with the first name: a link at the top, which a second copy would go through."""
    assert copy_from(tmp_path, *sent(raw(SYMLINK, b"top", rest=os.fsencode(victim))), engine=engine).status == 0
    found = copy_from(tmp_path, *sent(folder(), small(b"evil"), leave()), engine=engine)
    assert found.status == 1
    assert_untouched(tmp_path, victim)


def test_a_folder_replaced_by_a_link_in_the_middle_is_not_followed(tmp_path: Path, victim: Path, engine: str) -> None:
    """Somebody else in the target folder takes the guest's side."""
    target = tmp_path / "target"
    target.mkdir()

    def act(end: FarEnd) -> None:
        end.put(entries.pair(entries.SOURCE, 0), folder(), raw(ENTER, b"sub", mode=0o755), small(b"one"))
        while not (target / "top" / "sub" / "one").exists():
            pass
        (target / "top" / "sub").rename(target / "top" / "away")
        (target / "top" / "sub").symlink_to(victim)
        end.put(small(b"precious"), leave(), leave(), entries.pair(entries.FINISH, 6, 8), protocol.exited(0))

    with agent_that(tmp_path / "agent.sock", act) as guest:
        cp(guest, ":/top", target, engine=engine)
    (tmp_path / "agent.sock").unlink()
    assert (target / "top" / "away" / "precious").read_bytes() == b"evil"
    assert_untouched(tmp_path, victim)


@pytest.mark.parametrize("number", [0, 1, 2, 3, 1 << 63, (1 << 64) - 1])
def test_a_hard_link_is_to_a_file_of_the_same_copy_or_to_none(
    tmp_path: Path, victim: Path, engine: str, number: int
) -> None:
    frames = sent(folder(), small(b"file"), raw(LINK, b"link", rest=number.to_bytes(8, "big")), leave())
    found = copy_from(tmp_path, *frames, engine=engine)
    assert found.status == 1
    assert "fastvsock: :/top/link: the file that it is another name of was not copied\n" in found.stderr
    assert_untouched(tmp_path, victim)


def test_a_file_through_a_link_with_its_name_replaces_the_link(tmp_path: Path, victim: Path, engine: str) -> None:
    """CVE-2018-1002100's other half: the file itself, and not its folder, is the link."""
    frames = sent(folder(), raw(SYMLINK, b"x", rest=os.fsencode(victim / "precious")), small(b"x"), leave())
    found = copy_from(tmp_path, *frames, engine=engine)
    assert (found.status, (found.target / "top" / "x").read_bytes()) == (0, b"evil")
    assert_untouched(tmp_path, victim)


@pytest.mark.parametrize(
    ("first", "second"), [(b"Name", b"name"), ("ä".encode(), "a\u0308".encode()), (b"a ", b"a"), (b"a\xff", b"a")]
)
def test_names_that_look_alike_are_two_names_or_the_second_is_refused(
    tmp_path: Path, victim: Path, engine: str, first: bytes, second: bytes
) -> None:
    frames = sent(folder(), raw(SYMLINK, first, rest=os.fsencode(victim)), raw(ENTER, second), small(b"evil"))
    copy_from(tmp_path, *frames[:-1], leave(), leave(), entries.pair(entries.FINISH, 6, 4), engine=engine)
    assert_untouched(tmp_path, victim)


def test_names_are_printed_with_control_characters_escaped(tmp_path: Path, engine: str) -> None:
    """kubectl's terminal escape attack (CVE-2021-25743), with a name."""
    frames = sent(folder(), entries.note(entries.READ, 13, b"\x1b[2J\x07\xff"), leave())
    found = copy_from(tmp_path, *frames, engine=engine)
    assert found.stderr == "fastvsock: :/top/\\x1b[2J\\x07\\xff: cannot read: Permission denied\n"


def test_setuid_bits_come_only_with_their_owner(tmp_path: Path, engine: str) -> None:
    found = copy_from(tmp_path, *sent(small(b"top", mode=0o6755)), engine=engine, options=("--no-owner",))
    assert found.status == 0
    assert stat.S_IMODE((found.target / "top").stat().st_mode) == 0o755


@pytest.mark.parametrize(
    "frames",
    [
        [folder(), raw(FILE, b"f", size=(1 << 63))],
        [folder(), raw(FILE, b"f", size=(1 << 64) - 1)],
        [folder(), raw(FILE, b"f", size=10), entries.header(DATA, 11) + bytes(11)],
        [folder(), raw(FILE, b"f", size=10), entries.pair(entries.HOLE, 11)],
        [folder(), raw(FILE, b"f", size=10), entries.pair(entries.HOLE, (1 << 64) - 1)],
        [folder(), raw(FILE, b"f", size=10), entries.close()],
        [folder(), raw(FILE, b"f", size=10), leave()],
        [folder(), raw(FILE, b"f", size=10), raw(FILE, b"g")],
        [folder(), raw(FILE, b"f", size=10, flags=entries.INLINE, rest=b"short")],
        [folder(), raw(FILE, b"f", size=10, flags=entries.RESUMED, rest=(5).to_bytes(8, "big"))],
        [folder(), raw(FILE, b"f", size=10, flags=entries.EMPTY)],
        [folder(), raw(KEPT, b"f")],
        [folder(), entries.header(DATA, 3) + b"abc"],
        [folder(), raw(SYMLINK, b"l", rest=b"")],
        [folder(), raw(SYMLINK, b"l", rest=b"a\0b")],
        [folder(), raw(SYMLINK, b"l", rest=b"x" * 4096)],
        [folder(), leave(), leave()],
        [leave()],
        [folder(), raw(entries.OFFER_ENTER, b"x")],
        [folder(), entries.pair(entries.FINISH, 1, 0)],
        [folder(), leave(), entries.pair(entries.FINISH, 3, 0)],
        [folder(), leave(), entries.pair(entries.FINISH, 2, 1)],
        [entries.pair(entries.SOURCE, 1)],
        [folder(), entries.pair(entries.SOURCE, 1)],
        [folder(), entries.frame(200)],
        [folder(), entries.header(FILE, 1 << 30)],
        [folder(), b"\x20\1\0\0\0\0\0\0"],
        [folder(), entries.frame(entries.NOTE, b"\xff\0\0\0\0")],
        [folder(), entries.frame(FILE, b"short")],
        [folder(), entries.frame(FILE, raw(FILE, b"f", flags=entries.WITH_XATTRS)[8:] + b"\xff\xff\xff\xff")],
        [protocol.exited(0)],
    ],
)
def test_what_is_out_of_order_ends_the_copy(tmp_path: Path, victim: Path, engine: str, frames: list[bytes]) -> None:
    found = copy_from(tmp_path, *frames, engine=engine)
    assert found.status == 125
    assert found.stderr.startswith("fastvsock: the guest's agent sent ")
    assert found.stderr.count("\n") == 1
    assert not [path for path in found.target.rglob("*") if path.is_file()]
    assert_untouched(tmp_path, victim)


def test_nothing_comes_after_the_end(tmp_path: Path, victim: Path, engine: str) -> None:
    found = copy_from(tmp_path, *sent(small(b"top")), small(b"more"), engine=engine)
    assert (found.status, os.listdir(found.target)) == (125, ["top"])


def test_a_file_of_an_absurd_size_is_a_fault_of_its_own(tmp_path: Path, engine: str) -> None:
    size = (1 << 63) - 1
    frames = [
        folder(),
        raw(FILE, b"f", size=size),
        entries.pair(entries.HOLE, size),
        entries.close(),
        small(b"g"),
        leave(),
    ]
    found = copy_from(tmp_path, *frames, entries.pair(entries.FINISH, 4, 4), engine=engine)
    assert (found.status, os.listdir(found.target / "top")) == (1, ["g"])
    assert found.stderr == "fastvsock: :/top/f: cannot write: File too large\n"


def test_folders_without_end_end(tmp_path: Path, engine: str) -> None:
    frames = [folder(), *[raw(ENTER, b"d", mode=0o755)] * (entries.MAX_DEPTH + 1)]
    found = copy_from(tmp_path, *frames, engine=engine, options=("--dry-run",))
    assert found.status == 125
    assert f"more than {entries.MAX_DEPTH} folders in one another" in found.stderr


def test_a_temporary_name_cannot_be_sent(tmp_path: Path, engine: str) -> None:
    found = copy_from(tmp_path, *sent(folder(), small(b".fastvsock-0-0.part"), leave()), engine=engine)
    reason = (
        "its name, .fastvsock-*.part, is that of an unfinished copy: finish it with --resume, remove it, or rename it"
    )
    assert found.stderr == f"fastvsock: :/top/.fastvsock-0-0.part: {reason}\n"


def put_by_hand(guest: Guest, target: Path, *frames: bytes) -> bytes:
    """A client of ill will: what the agent answers."""
    peer = dial_agent(guest)
    arguments = [os.fsencode(target), b"top"]
    peer.sock.sendall(Request(protocol.PUT, arguments=arguments).encode())
    assert peer.receive() == (protocol.STARTED, 0, b"")
    end = FarEnd(peer.sock)
    end.put(entries.pair(entries.SOURCE, 0), *frames)
    with peer.sock:
        peer.sock.shutdown(1)
        return end.drain()


def test_the_agent_is_as_careful(guest: Guest, tmp_path: Path, victim: Path) -> None:
    (tmp_path / "target").mkdir()
    put_by_hand(guest, tmp_path / "target", *sent(folder(), small(b"../../victim/evil"), leave()))
    link = raw(SYMLINK, b"out", rest=os.fsencode(victim))
    put_by_hand(guest, tmp_path / "target", *sent(folder(), link, raw(ENTER, b"out"), small(b"evil"), leave(), leave()))
    assert (tmp_path / "target" / "top" / "out").is_symlink()
    assert_untouched(tmp_path, victim)


def member(
    name: str, kind: bytes = tarfile.REGTYPE, link: str = "", content: bytes = b""
) -> tuple[tarfile.TarInfo, bytes]:
    info = tarfile.TarInfo(name)
    info.type, info.linkname, info.size, info.mode = kind, link, len(content), 0o755
    return info, content


@pytest.mark.parametrize(
    ("members", "faults"),
    [
        ([member("../victim/evil", content=b"evil")], ["../victim/evil: cannot be named so"]),
        ([member("a/../../victim/evil", content=b"evil")], ["a/../../victim/evil: cannot be named so"]),
        ([member("/VICTIM/evil", content=b"evil")], ["/VICTIM/evil: cannot be named so"]),
        (
            [member("out", tarfile.SYMTYPE, "VICTIM"), member("out/evil", content=b"evil")],
            ["out: not copied into the link of this name: ", "out/evil: the folder could not be written"],
        ),
        (
            [member("hard", tarfile.LNKTYPE, "../victim/precious"), member("hard", content=b"evil")],
            ["hard: the file that it is another name of was not copied"],
        ),
        ([member("device", tarfile.CHRTYPE)], ["device: left out"]),
    ],
)
def test_a_hostile_tar_stays_in_its_folder(
    guest: Guest,
    engine: str,
    tmp_path: Path,
    victim: Path,
    members: list[tuple[tarfile.TarInfo, bytes]],
    faults: list[str],
) -> None:
    """The kinds of tarfile's own filters: outside the destination, absolute, links out of it, and devices."""
    (tmp_path / "target").mkdir()
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as tar:
        for original, content in members:
            info = copy.copy(original)
            info.name = info.name.replace("VICTIM", str(victim).lstrip("/"))
            info.linkname = info.linkname.replace("VICTIM", str(victim))
            tar.addfile(info, io.BytesIO(content))
    done = cp(guest, "-", f":{tmp_path}/target", engine=engine, input=stream.getvalue())
    assert done.returncode == 1
    for fault in faults:
        assert f"fastvsock: {fault.replace('VICTIM', str(victim).lstrip('/'))}" in done.stderr.decode()
    assert_untouched(tmp_path, victim)
