"""Sources that are out of the ordinary: copied, or refused by name for a reason, and the rest is copied."""

import errno
import os
import re
import subprocess
import tarfile
from io import BytesIO
from pathlib import Path

import pytest

from fastvsock.copying import entries, send
from fastvsock.copying.entries import Entry, Fault
from fastvsock.copying.folders import Folder, Shelf
from fastvsock.copying.walk import Filter, Walk
from support import HANG
from support.channels import Guest, umbrella
from support.copying import copied, cp, words

BOTH_WAYS = pytest.mark.parametrize("way", ["put", "get"])
IN_2300 = 10_413_792_000  # seconds since 1970


@pytest.fixture
def far(tmp_path: Path) -> Path:
    """A folder, a file, a link and a FIFO of the year 2300, and a file of today."""
    tree = tmp_path / "tree"
    tree.mkdir()
    (tree / "file").write_bytes(b"content")
    (tree / "large").write_bytes(bytes(100_000))
    (tree / "link").symlink_to("file")
    os.mkfifo(tree / "fifo")
    for path in (tree / "file", tree / "large", tree / "link", tree / "fifo", tree):
        os.utime(path, (IN_2300, IN_2300), follow_symlinks=False)
    (tree / "today").write_bytes(b"today")
    os.utime(tree, (IN_2300, IN_2300))
    if tree.stat().st_mtime < IN_2300:
        pytest.skip("a file system without the year 2300")
    return tree


@BOTH_WAYS
@pytest.mark.parametrize("options", [[], ["--resume"], ["--checksum"]])
def test_a_time_that_no_entry_can_have_becomes_the_last_one(
    guest: Guest, engine: str, far: Path, tmp_path: Path, way: str, options: list[str]
) -> None:
    copied(guest, *options, *words(way, far, tmp_path / "there"), engine=engine)
    there = tmp_path / "there"
    assert sorted(os.listdir(there)) == ["fifo", "file", "large", "link", "today"]
    for name in ("file", "large", "link", "fifo", "."):
        assert (there / name).lstat().st_mtime_ns == entries.LAST_TIME
    if "--resume" in options:
        done = cp(guest, *options, "--stats", *words(way, f"{far}/.", there), engine=engine)
        assert b" 3 skipped, 0 failed; 0 bytes" in done.stderr


@BOTH_WAYS
def test_a_time_that_no_entry_can_have_does_not_stop_a_rehearsal(
    guest: Guest, engine: str, far: Path, tmp_path: Path, way: str
) -> None:
    done = copied(guest, "--dry-run", *words(way, far, tmp_path / "there"), engine=engine)
    assert len(done.stdout.splitlines()) == 6


@BOTH_WAYS
@pytest.mark.parametrize("options", [[], ["--resume"]])
def test_a_slash_behind_a_link_to_a_folder_means_the_folder(
    guest: Guest, engine: str, tmp_path: Path, way: str, options: list[str]
) -> None:
    for name in ("real/sub", "into"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "real" / "sub" / "file").write_bytes(b"content")
    (tmp_path / "real" / "within").symlink_to("sub")
    (tmp_path / "link").symlink_to("real")
    copied(guest, *options, *words(way, f"{tmp_path}/link/", tmp_path / "into"), engine=engine)
    assert (tmp_path / "into" / "link" / "sub" / "file").read_bytes() == b"content"
    assert os.readlink(tmp_path / "into" / "link" / "within") == "sub"


@BOTH_WAYS
def test_a_slash_behind_a_file_is_refused(guest: Guest, engine: str, tmp_path: Path, way: str) -> None:
    (tmp_path / "file").touch()
    done = cp(guest, *words(way, f"{tmp_path}/file/", tmp_path / "there"), engine=engine)
    assert re.search(rb"/file/?: cannot read: Not a directory\n$", done.stderr)
    assert (done.returncode, (tmp_path / "there").exists()) == (1, False)


@BOTH_WAYS
@pytest.mark.parametrize(("options", "source"), [([], "/proc/version"), (["--checksum"], "/proc/kallsyms")])
def test_a_file_that_does_not_say_its_size_is_whole(
    guest: Guest, engine: str, tmp_path: Path, way: str, options: list[str], source: str
) -> None:
    assert not Path(source).stat().st_size
    copied(guest, *options, *words(way, source, tmp_path / "there"), engine=engine)
    assert (tmp_path / "there").read_bytes() == Path(source).read_bytes()


@BOTH_WAYS
def test_a_file_of_sysfs_has_the_bytes_that_it_has(guest: Guest, engine: str, tmp_path: Path, way: str) -> None:
    copied(guest, *words(way, "/sys/kernel/fscaps", tmp_path / "there"), engine=engine)
    assert (tmp_path / "there").read_bytes() == Path("/sys/kernel/fscaps").read_bytes()


def test_a_file_without_an_end_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(send, "UNSIZED", 100)
    read_end, write_end = os.pipe()
    os.write(write_end, bytes(101))
    with pytest.raises(Fault) as caught:
        send._read_on(read_end, b"x")
    assert entries.describe(*caught.value.args) == "cannot read: File too large"
    os.close(read_end)
    os.close(write_end)


def test_a_tar_stream_has_the_last_time_too(guest: Guest, engine: str, far: Path) -> None:
    stream = copied(guest, f":{far}", "-", engine=engine).stdout
    with tarfile.open(fileobj=BytesIO(stream)) as found:
        assert found.getmember("tree/file").pax_headers["mtime"] == "9223372036.854775807"


@pytest.mark.parametrize("entry", [Entry(b"f", size=-1), Entry(b"f", size=1 << 64), Entry(b"x" * 256)])
def test_what_cannot_be_packed_is_the_fault_of_its_entry(entry: Entry) -> None:
    with pytest.raises(Fault) as caught:
        entry.encode(entries.FILE)
    assert entries.describe(*caught.value.args) == "cannot read: Value too large for defined data type"


def test_a_tar_member_of_an_impossible_size_is_named(guest: Guest, engine: str, tmp_path: Path) -> None:
    info = tarfile.TarInfo("huge")
    info.size = 1 << 64
    stream = info.tobuf(tarfile.GNU_FORMAT)
    (tmp_path / "into").mkdir()
    done = cp(guest, "-", f":{tmp_path}/into", engine=engine, input=stream)
    sentence = b"fastvsock: cannot read the tar stream: huge has 18446744073709551616 bytes\n"
    assert (done.returncode, done.stderr) == (1, sentence)


def test_a_name_that_is_too_long_for_an_entry_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "tree" / "folder").mkdir(parents=True)
    monkeypatch.setattr(entries, "MAX_NAME", 5)
    shelf = Shelf(native=False)
    fd = os.open(tmp_path, os.O_RDONLY)
    walk = Walk(shelf, Filter([]), look=False).entry(Folder(shelf, b"", root=fd), b"tree", follow=False)
    kinds = [(kind, name, getattr(status, "args", None)) for kind, _, name, status in walk]
    os.close(fd)
    assert kinds[1] == (entries.NOTE, b"folder", (entries.READ, errno.ENAMETOOLONG))
    assert [kind for kind, _, _ in kinds] == [entries.ENTER, entries.NOTE, entries.LEAVE]


@BOTH_WAYS
@pytest.mark.parametrize("options", [[], ["--resume"], ["--dry-run"]])
def test_a_second_source_of_the_same_name_is_refused_by_name(
    guest: Guest, engine: str, tmp_path: Path, way: str, options: list[str]
) -> None:
    for name in ("a", "b"):
        (tmp_path / name / "tree").mkdir(parents=True)
        (tmp_path / name / "tree" / name).touch()
        for path in (tmp_path / name / "x", tmp_path / name / "tree" / "x"):
            path.write_text(name)
    into = tmp_path / "into"
    into.mkdir()
    for sources in ([tmp_path / "a" / "x", tmp_path / "b" / "x"], [tmp_path / "a" / "tree", tmp_path / "b" / "tree"]):
        done = cp(guest, *options, *words(way, *sources, into), engine=engine)
        refused = sources[1] if sources[1].is_file() else sources[1] / "x"
        reason = "not copied over the file of this name from another SOURCE: rename one, or copy it to another TARGET"
        shown = f"{':' if way == 'get' else ''}{refused}"
        assert (done.returncode, done.stderr.decode()) == (1, f"fastvsock: {shown}: {reason}\n")
    if not options:
        assert (into / "x").read_text() == (into / "tree" / "x").read_text() == "a"
        assert sorted(os.listdir(into / "tree")) == ["a", "b", "x"]


def test_what_two_folders_hold_is_not_copied_over_each_other(guest: Guest, engine: str, tmp_path: Path) -> None:
    for name in ("a", "b", "into"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "x").write_text(name)
    done = cp(guest, f"{tmp_path}/a/.", f"{tmp_path}/b/.", f":{tmp_path}/into", engine=engine)
    assert done.returncode == 1
    assert done.stderr.startswith(f"fastvsock: {tmp_path}/b/./x: not copied over ".encode())
    assert (tmp_path / "into" / "x").read_text() == "a"


@pytest.mark.parametrize(
    ("paths", "sentence"),
    [
        (["", ":/x"], "the path on this host is empty: give one such as ./srv"),
        ([":/x", ""], "the path on this host is empty: give one such as ./srv"),
        ([":", "x"], "the path in the guest is empty: give one such as :/srv"),
        (["x", ":"], "the path in the guest is empty: give one such as :/srv"),
    ],
)
def test_an_empty_path_is_said_to_be_where_it_is(guest: Guest, paths: list[str], sentence: str) -> None:
    done = cp(guest, *paths)
    assert (done.returncode, done.stderr.decode()) == (125, f"fastvsock: {sentence}\n")


@BOTH_WAYS
def test_what_an_unfinished_copy_has_left_is_refused_for_that_reason(
    guest: Guest, engine: str, tmp_path: Path, way: str
) -> None:
    (tmp_path / "tree").mkdir()
    (tmp_path / "tree" / ".fastvsock-x.part").touch()
    (tmp_path / "tree" / "x").touch()
    done = cp(guest, *words(way, tmp_path / "tree", tmp_path / "there"), engine=engine)
    assert done.returncode == 1
    assert b"/tree/.fastvsock-x.part: its name, .fastvsock-*.part, is that of an unfinished copy: " in done.stderr
    assert os.listdir(tmp_path / "there") == ["x"]
    shown = subprocess.run(umbrella("cp", "--help"), capture_output=True, text=True, timeout=HANG, check=True).stdout
    assert ".fastvsock-....part: --resume" in shown


@BOTH_WAYS
def test_a_target_folder_that_is_missing_is_named(guest: Guest, engine: str, tmp_path: Path, way: str) -> None:
    (tmp_path / "r.sh").touch()
    done = cp(guest, *words(way, tmp_path / "r.sh", f"{tmp_path}/new/"), engine=engine)
    source, where = (tmp_path / "r.sh", " in the guest") if way == "put" else (f":{tmp_path}/r.sh", "")
    sentence = f"fastvsock: {source}: cannot copy to {tmp_path}/new/{where}: No such file or directory\n"
    assert (done.returncode, done.stderr.decode()) == (1, sentence)
