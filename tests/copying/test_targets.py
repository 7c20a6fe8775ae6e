"""What stands in a file's place already: a link that the user has named is followed, and nothing special is lost."""

import os
import socket
import stat
import subprocess
import threading
from pathlib import Path

import pytest

from support import HANG
from support.channels import Guest
from support.copying import copied, cp, cp_command, words

BOTH_WAYS = pytest.mark.parametrize("way", ["put", "get"])
as_root = pytest.mark.skipif(os.geteuid() != 0, reason="this machine: only root makes devices")
SIZES = pytest.mark.parametrize("size", [7, 300_000])


def make_special(path: Path, kind: str) -> None:
    if kind == "device":
        os.mknod(path, 0o666 | stat.S_IFCHR, os.makedev(1, 3))
    elif kind == "FIFO":
        os.mkfifo(path)
    else:
        with socket.socket(socket.AF_UNIX) as sock:
            sock.bind(str(path))


KINDS = pytest.mark.parametrize("kind", [pytest.param("device", marks=as_root), "FIFO", "socket"])


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "source"
    path.write_bytes(b"content")
    return path


@BOTH_WAYS
@pytest.mark.parametrize(
    ("size", "there", "options"),
    [(7, True, []), (300_000, True, []), (7, False, ["--resume", "--checksum", "--fsync"]), (300_000, False, [])],
)
def test_a_file_goes_where_the_target_leads_to(
    guest: Guest, engine: str, tmp_path: Path, source: Path, way: str, size: int, there: bool, options: list[str]
) -> None:
    source.write_bytes(os.urandom(size))
    away = tmp_path / "away"
    away.mkdir()
    if there:
        (away / "file").write_bytes(b"old")
    (tmp_path / "second").symlink_to("away/file")
    (tmp_path / "target").symlink_to(tmp_path / "second")
    copied(guest, *options, *words(way, source, tmp_path / "target"), engine=engine)
    assert (tmp_path / "target").is_symlink()
    assert (tmp_path / "second").is_symlink()
    assert (away / "file").read_bytes() == source.read_bytes()
    assert os.listdir(away) == ["file"]
    if options:
        done = cp(guest, *options, "--stats", *words(way, source, tmp_path / "target"), engine=engine)
        assert done.stderr.startswith(b"fastvsock: 0 copied, 1 skipped, 0 failed; ")


@BOTH_WAYS
def test_a_link_takes_the_place_of_the_link_that_is_the_target(
    guest: Guest, engine: str, tmp_path: Path, source: Path, way: str
) -> None:
    (tmp_path / "link").symlink_to("elsewhere")
    (tmp_path / "target").symlink_to(source)
    copied(guest, *words(way, tmp_path / "link", tmp_path / "target"), engine=engine)
    assert os.readlink(tmp_path / "target") == "elsewhere"
    assert source.read_bytes() == b"content"


@BOTH_WAYS
def test_a_target_that_leads_into_no_folder_is_named(
    guest: Guest, engine: str, tmp_path: Path, source: Path, way: str
) -> None:
    (tmp_path / "target").symlink_to("nowhere/file")
    done = cp(guest, *words(way, source, tmp_path / "target"), engine=engine)
    shown = words(way, source, "")[0]
    assert done.stderr == f"fastvsock: {shown}: cannot create: No such file or directory\n".encode()
    assert (done.returncode, (tmp_path / "target").is_symlink()) == (1, True)


@BOTH_WAYS
@as_root
@pytest.mark.parametrize(("size", "through"), [(7, "link"), (300_000, "target")])
def test_a_device_takes_a_file_and_stays_what_it_is(
    guest: Guest, engine: str, tmp_path: Path, source: Path, way: str, size: int, through: str
) -> None:
    with source.open("wb") as file:
        file.truncate(size)  # one hole, which nobody can seek over in a device
    make_special(tmp_path / "target", "device")
    (tmp_path / "link").symlink_to("target")
    before = (tmp_path / "target").stat()
    copied(guest, "--fsync", *words(way, source, tmp_path / through), engine=engine)
    after = (tmp_path / "target").lstat()
    assert (after.st_mode, after.st_rdev, after.st_ino) == (before.st_mode, before.st_rdev, before.st_ino)
    assert (tmp_path / "link").is_symlink()


@BOTH_WAYS
@SIZES
def test_a_fifo_takes_a_file_as_it_comes(
    guest: Guest, engine: str, tmp_path: Path, source: Path, way: str, size: int
) -> None:
    source.write_bytes(os.urandom(size))
    with source.open("ab") as file:
        file.truncate(2 * size)
    make_special(tmp_path / "target", "FIFO")
    taken: list[bytes] = []
    reader = threading.Thread(target=lambda: taken.append((tmp_path / "target").read_bytes()), daemon=True)
    reader.start()
    copied(guest, *words(way, source, tmp_path / "target"), engine=engine)
    reader.join(HANG)
    assert taken == [source.read_bytes()]
    assert stat.S_ISFIFO((tmp_path / "target").lstat().st_mode)


@pytest.fixture
def standard_output(tmp_path: Path) -> Path:
    """A link as /dev/stdout is one: the machine's own would be lost if it were replaced."""
    (tmp_path / "stdout").symlink_to("/proc/self/fd/1")
    return tmp_path / "stdout"


def test_standard_output_is_a_target(guest: Guest, engine: str, source: Path, standard_output: Path) -> None:
    source.write_bytes(os.urandom(300_000))
    done = copied(guest, f":{source}", standard_output, engine=engine)
    assert done.stdout == source.read_bytes()


def test_a_reader_that_leaves_is_the_fault_of_the_file(
    guest: Guest, engine: str, source: Path, standard_output: Path
) -> None:
    source.write_bytes(bytes(3_000_000))
    command = cp_command(guest, f":{source}", standard_output, engine=engine)
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as child:
        assert child.stdout
        assert child.stderr
        child.stdout.read(10)
        child.stdout.close()
        said = child.stderr.read().decode()
    assert (child.returncode, said) == (1, f"fastvsock: :{source}: cannot write: Broken pipe\n")


@BOTH_WAYS
@as_root
def test_what_cannot_be_read_again_is_not_compared(
    guest: Guest, engine: str, tmp_path: Path, source: Path, way: str
) -> None:
    make_special(tmp_path / "target", "device")
    done = cp(guest, "--checksum", *words(way, source, tmp_path / "target"), engine=engine)
    assert done.returncode == 1
    assert done.stderr.endswith(
        b"source: not written, for a device or a FIFO cannot be read again: leave --checksum out\n"
    )


@BOTH_WAYS
@KINDS
def test_nothing_special_in_a_tree_is_replaced(guest: Guest, engine: str, tmp_path: Path, way: str, kind: str) -> None:
    for name in ("tree", "into"):
        (tmp_path / name / "sub").mkdir(parents=True)
    for place, size in ((".", 7), ("sub", 300_000)):
        (tmp_path / "tree" / place / "file").write_bytes(bytes(size))
        make_special(tmp_path / "into" / place / "file", kind)
    (tmp_path / "tree" / "sub" / "link").symlink_to("file")
    make_special(tmp_path / "into" / "sub" / "link", kind)
    done = cp(guest, *words(way, f"{tmp_path}/tree/.", tmp_path / "into"), engine=engine)
    reason = f"not copied over the {kind} of this name: remove it, or copy to another TARGET"
    top = words(way, f"{tmp_path}/tree/.", "")[0]
    expected = [f"fastvsock: {top}/{name}: {reason}" for name in ("file", "sub/file", "sub/link")]
    assert (done.returncode, sorted(done.stderr.decode().splitlines())) == (1, expected)
    for name in ("file", "sub/file", "sub/link"):
        mode = (tmp_path / "into" / name).lstat().st_mode
        assert stat.S_IFMT(mode) not in (stat.S_IFREG, stat.S_IFLNK)


@BOTH_WAYS
def test_a_socket_is_no_target(guest: Guest, engine: str, tmp_path: Path, source: Path, way: str) -> None:
    make_special(tmp_path / "target", "socket")
    done = cp(guest, *words(way, source, tmp_path / "target"), engine=engine)
    assert (done.returncode, b"not copied over the socket of this name: " in done.stderr) == (1, True)
    assert (tmp_path / "target").is_socket()


@BOTH_WAYS
def test_a_link_in_a_folder_gives_way_to_a_file(
    guest: Guest, engine: str, tmp_path: Path, source: Path, way: str
) -> None:
    (tmp_path / "into").mkdir()
    (tmp_path / "victim").write_bytes(b"mine")
    (tmp_path / "into" / "source").symlink_to("../victim")
    copied(guest, *words(way, source, tmp_path / "into"), engine=engine)
    assert not (tmp_path / "into" / "source").is_symlink()
    assert (tmp_path / "victim").read_bytes() == b"mine"


@pytest.fixture
def merged(tmp_path: Path) -> Path:
    """A root as distributions have it, with links in the place of folders, and an overlay for it beside it."""
    root = tmp_path / "root"
    (root / "usr" / "bin").mkdir(parents=True)
    (root / "bin").symlink_to("usr/bin")
    (root / "out").symlink_to(tmp_path)
    for name in ("bin", "out"):
        (tmp_path / "overlay" / name / "sub").mkdir(parents=True)
        (tmp_path / "overlay" / name / "sub" / "tool").write_bytes(b"tool")
    return root


@BOTH_WAYS
def test_a_folder_is_copied_into_a_link_when_that_is_asked_for(
    guest: Guest, engine: str, merged: Path, tmp_path: Path, way: str
) -> None:
    arguments = words(way, f"{tmp_path}/overlay/bin", merged)
    copied(guest, "--keep-dirlinks", *arguments, engine=engine)
    assert (merged / "usr" / "bin" / "sub" / "tool").read_bytes() == b"tool"
    assert (merged / "bin").is_symlink()
    done = cp(guest, "--keep-dirlinks", "--resume", "--stats", *arguments, engine=engine)
    assert b" 1 skipped, 0 failed; 0 bytes" in done.stderr


@BOTH_WAYS
@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ([], "--keep-dirlinks copies into the folder that it leads to"),
        (["--keep-dirlinks"], "it does not lead down from its folder: make the real folder the TARGET"),
    ],
)
def test_a_link_that_is_not_to_be_followed_is_named(
    guest: Guest, engine: str, merged: Path, tmp_path: Path, way: str, options: list[str], reason: str
) -> None:
    done = cp(guest, *options, *words(way, f"{tmp_path}/overlay/out", merged), engine=engine)
    lines = done.stderr.decode().splitlines()
    assert done.returncode == 1
    assert "/overlay/out: not copied into the link of this name" in lines[0]
    assert lines[0].endswith(reason)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["overlay", "root"]


def test_a_tar_stream_goes_through_links_too(guest: Guest, engine: str, merged: Path, tmp_path: Path) -> None:
    tar = ["tar", "-C", str(tmp_path / "overlay"), "-c", "bin/sub/tool"]
    made = subprocess.run(tar, capture_output=True, check=True, timeout=HANG)
    copied(guest, "--keep-dirlinks", "-", f":{merged}", engine=engine, input=made.stdout)
    assert (merged / "usr" / "bin" / "sub" / "tool").read_bytes() == b"tool"
