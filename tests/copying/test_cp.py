"""`fastvsock cp`: the real command, against the real agent; the guest's files are this machine's."""

import json
import os
import signal
import socket
import subprocess
import tarfile
import tempfile
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path

import pytest

from support import HANG, PROGRAM, started
from support.channels import Guest, umbrella, within
from support.copying import ODD_NAMES, copied, cp, cp_command, make_tree, snapshot

with_zlib = pytest.mark.skipif(bool(PROGRAM), reason="by design: the static binary takes no compressed tar streams")


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    return make_tree(tmp_path / "tree")


def test_a_tree_there_and_back_is_the_same(guest: Guest, engine: str, tree: Path, tmp_path: Path) -> None:
    before = snapshot(tree)
    copied(guest, tree, f":{tmp_path}/there", engine=engine)
    assert snapshot(tmp_path / "there") == before
    copied(guest, f":{tmp_path}/there", tmp_path / "back", engine=engine)
    assert snapshot(tmp_path / "back") == before


def test_a_second_copy_changes_nothing(guest: Guest, engine: str, tree: Path, tmp_path: Path) -> None:
    (tmp_path / "into").mkdir()
    for _ in range(2):
        copied(guest, tree, f":{tmp_path}/into", engine=engine)
        copied(guest, f":{tree}", tmp_path / "into", engine=engine)
    assert snapshot(tmp_path / "into" / "tree") == snapshot(tree)


@pytest.mark.parametrize("size", [0, 1, 65535, 65536, 65537, 1 << 20, (1 << 20) + 1, 20_000_000])
def test_a_file_of_any_size_is_whole(guest: Guest, engine: str, size: int, tmp_path: Path) -> None:
    data = os.urandom(size)
    (tmp_path / "file").write_bytes(data)
    copied(guest, tmp_path / "file", f":{tmp_path}/there", engine=engine)
    copied(guest, f":{tmp_path}/there", tmp_path / "back", engine=engine)
    assert (tmp_path / "back").read_bytes() == data


def test_a_folder_that_exists_gets_the_sources_under_their_names(
    guest: Guest, engine: str, tree: Path, tmp_path: Path
) -> None:
    (tmp_path / "into").mkdir()
    copied(guest, tree, tree / "file", tree / "sub" / "link", f":{tmp_path}/into", engine=engine)
    assert sorted(os.listdir(tmp_path / "into")) == ["file", "link", "tree"]
    assert (tmp_path / "into" / "link").is_symlink()


def test_any_other_target_is_the_name_of_the_source(guest: Guest, engine: str, tree: Path, tmp_path: Path) -> None:
    copied(guest, tree / "file", f":{tmp_path}/other", engine=engine)
    assert (tmp_path / "other").read_bytes() == b"content"
    copied(guest, f"{tree}/", f":{tmp_path}/new/", engine=engine)
    assert snapshot(tmp_path / "new") == snapshot(tree)


@pytest.mark.parametrize("source", ["tree/.", "tree/sub/..", "tree/sub/../"])
def test_a_dot_means_what_is_in_the_folder(guest: Guest, engine: str, tree: Path, tmp_path: Path, source: str) -> None:
    (tmp_path / "into").mkdir()
    copied(guest, f":{tmp_path}/{source}", tmp_path / "into", engine=engine)
    assert sorted(os.listdir(os.fsencode(tmp_path / "into"))) == sorted(os.listdir(os.fsencode(tree)))


def test_several_sources_need_a_folder(guest: Guest, engine: str, tree: Path, tmp_path: Path) -> None:
    done = cp(guest, tree / "file", tree / "sub", f":{tmp_path}/missing", engine=engine)
    assert done.returncode == 1
    where = f"cannot copy to {tmp_path}/missing in the guest"
    assert done.stderr == f"fastvsock: {where}: No such file or directory\n".encode()
    assert not (tmp_path / "missing").exists()


def test_a_file_does_not_become_a_folder(guest: Guest, engine: str, tree: Path, tmp_path: Path) -> None:
    done = cp(guest, f":{tree}/file", f"{tmp_path}/missing/", engine=engine)
    assert (done.returncode, b"No such file or directory" in done.stderr) == (1, True)
    done = cp(guest, f":{tree}/sub", tree / "file", engine=engine)
    assert (done.returncode, b"cannot create" in done.stderr) == (1, True)
    assert (tree / "file").read_bytes() == b"content"


def test_what_cannot_be_read_is_named_and_the_rest_is_copied(
    guest: Guest, engine: str, tree: Path, tmp_path: Path
) -> None:
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(str(tree / "sub" / "socket"))
        for words in ((f":{tree}", tmp_path / "back"), (tree, f":{tmp_path}/there")):
            done = cp(guest, *words, engine=engine)
            shown = str(words[0])
            assert (done.returncode, done.stderr) == (1, f"fastvsock: {shown}/sub/socket: left out\n".encode())
    (tree / "sub" / "socket").unlink()
    assert (tmp_path / "back" / "file").read_bytes() == b"content"
    assert set(snapshot(tmp_path / "there")) == set(snapshot(tree)) == set(snapshot(tmp_path / "back"))


def test_a_source_that_is_not_there_is_named(guest: Guest, engine: str, tree: Path, tmp_path: Path) -> None:
    (tmp_path / "into").mkdir()
    done = cp(guest, f":{tree}/file", f":{tree}/no\nthing", f":{tree}/sub", tmp_path / "into", engine=engine)
    sentence = f"fastvsock: :{tree}/no\\nthing: cannot read: No such file or directory\n"
    assert (done.returncode, done.stderr) == (1, sentence.encode())
    assert sorted(os.listdir(tmp_path / "into")) == ["file", "sub"]


def test_holes_stay_holes(guest: Guest, engine: str, tmp_path: Path) -> None:
    with (tmp_path / "sparse").open("wb") as file:
        file.truncate(1 << 33)
        file.seek((1 << 32) - 3)
        file.write(b"across")
    copied(guest, tmp_path / "sparse", f":{tmp_path}/there", engine=engine)
    copied(guest, f":{tmp_path}/there", tmp_path / "back", engine=engine)
    back = (tmp_path / "back").stat()
    assert back.st_size == 1 << 33
    assert back.st_blocks * 512 < 1 << 20
    with (tmp_path / "back").open("rb") as file:
        file.seek((1 << 32) - 4)
        assert file.read(8) == b"\0across\0"


def test_paths_may_be_deeper_than_any_path(guest: Guest, engine: str, tmp_path: Path) -> None:
    name = b"d" * 200
    depth = 100
    top = fd = os.open(tmp_path, os.O_RDONLY)
    for level in range(depth):
        os.mkdir(name if level else b"deep", dir_fd=fd)
        fd, above = os.open(name if level else b"deep", os.O_RDONLY, dir_fd=fd), fd
        if above != top:
            os.close(above)
    os.close(os.open("file", os.O_CREAT | os.O_WRONLY, dir_fd=fd))
    os.symlink("target", "last", dir_fd=fd)
    os.link("file", "other", src_dir_fd=fd, dst_dir_fd=fd)
    os.close(fd)
    copied(guest, tmp_path / "deep", f":{tmp_path}/there", engine=engine)
    copied(guest, f":{tmp_path}/there", tmp_path / "back", engine=engine)
    fd = os.open(tmp_path / "back", os.O_RDONLY)
    for _ in range(depth - 1):
        fd, above = os.open(name, os.O_RDONLY, dir_fd=fd), fd
        os.close(above)
    assert sorted(os.listdir(fd)) == ["file", "last", "other"]
    assert os.stat("file", dir_fd=fd).st_nlink == 2
    os.close(fd)
    os.close(top)
    for folder in "deep", "there", "back":
        subprocess.run(["rm", "-rf", tmp_path / folder], check=True)


@pytest.fixture
def memory() -> Iterator[Path]:
    """A folder in memory, if there is one: a disk makes and removes 100,000 files more slowly than they are copied."""
    where = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
    with tempfile.TemporaryDirectory(prefix="fastvsock-", dir=where) as folder:
        yield Path(folder)


@pytest.mark.parametrize("engine", ["splice"], indirect=True)  # which differ in how they move content alone
def test_a_hundred_thousand_files_in_one_folder(guest: Guest, engine: str, memory: Path) -> None:
    (memory / "many").mkdir()
    fd = os.open(memory / "many", os.O_RDONLY)
    for number in range(100_000):
        os.mknod(str(number), 0o640, dir_fd=fd)
    copied(guest, memory / "many", f":{memory}/there", engine=engine)
    assert set(os.listdir(memory / "there")) == set(os.listdir(fd))
    os.close(fd)
    done = cp(guest, "--resume", "--stats", f":{memory}/many/.", memory / "there", engine=engine)
    assert (done.returncode, done.stderr.split(b";")[0]) == (0, b"fastvsock: 1 copied, 100000 skipped, 0 failed")


def test_setuid_is_for_those_who_keep_owners(guest: Guest, engine: str, tmp_path: Path) -> None:
    if os.geteuid():
        pytest.skip("this machine: only root gives files away")
    (tmp_path / "program").write_bytes(b"#!/bin/sh\n")
    os.chown(tmp_path / "program", 1234, 1235)
    (tmp_path / "program").chmod(0o6755)
    for options, expected in (([], (0o6755, 1234, 1235)), (["--no-owner"], (0o755, 0, os.getegid()))):
        copied(guest, *options, tmp_path / "program", f":{tmp_path}/there", engine=engine)
        copied(guest, *options, f":{tmp_path}/program", tmp_path / "back", engine=engine)
        for name in "there", "back":
            found = (tmp_path / name).stat()
            assert (found.st_mode & 0o7777, found.st_uid, found.st_gid) == expected


def test_patterns_leave_out(guest: Guest, engine: str, tree: Path, tmp_path: Path) -> None:
    options = ["--exclude=*arge*", "--exclude=sub/below", "--exclude=/exactly", "--exclude=program/x"]
    copied(guest, *options, f":{tree}", tmp_path / "back", engine=engine)
    missing = {os.fsdecode(path) for path in set(snapshot(tree)) - set(snapshot(tmp_path / "back"))}
    assert missing == {"large", "exactly", "sub/large-again", "sub/below", "sub/below/secret"} | set()


@pytest.mark.parametrize(
    ("pattern", "left_out"),
    [
        ("*.o", "a.o build/a.o src/a.o src/build/a.o"),
        ("build", "build/a.o src/build/a.o"),
        ("build/", "build/a.o src/build/a.o"),
        ("/build", "build/a.o"),
        ("/build/", "build/a.o"),
        ("src/build", "src/build/a.o"),
        ("src/*.o", "src/a.o src/build/a.o"),
        ("src/[!b]*", "src/a.o"),
        ("?/a.o", ""),
        ("**/a.o", "build/a.o src/a.o src/build/a.o"),
        ("build/a.o", "build/a.o"),
    ],
)
def test_a_pattern_leaves_out_what_the_help_says(guest: Guest, tmp_path: Path, pattern: str, left_out: str) -> None:
    tree, there = tmp_path / "tree", tmp_path / "there"
    for folder in "", "build", "src", "src/build":
        (tree / folder).mkdir(exist_ok=True)
        (tree / folder / "a.o").touch()
    copied(guest, f"--exclude={pattern}", f":{tree}", there)
    missing = {f"{path.relative_to(tree)}" for path in tree.rglob("*.o")}
    missing -= {f"{path.relative_to(there)}" for path in there.rglob("*.o")}
    assert missing == set(left_out.split())


def test_links_are_followed_when_that_is_asked_for(guest: Guest, engine: str, tree: Path, tmp_path: Path) -> None:
    (tree / "dangling").unlink()
    (tree / "round").symlink_to(".")
    (tree / "folder").symlink_to("sub/below")
    done = cp(guest, "--follow", f":{tree}", tmp_path / "back", engine=engine)
    assert done.stderr == f"fastvsock: :{tree}/round: cannot read: Too many levels of symbolic links\n".encode()
    assert (tmp_path / "back" / "sub" / "link").read_bytes() == b"content"
    assert not (tmp_path / "back" / "sub" / "link").is_symlink()
    assert (tmp_path / "back" / "folder" / "secret").read_bytes() == b"s"


def test_a_dry_run_prints_and_writes_nothing(guest: Guest, engine: str, tree: Path, tmp_path: Path) -> None:
    for words in ((tree, f":{tmp_path}/there"), (f":{tree}", tmp_path / "back")):
        done = cp(guest, "--dry-run", *words, engine=engine)
        assert (done.returncode, done.stderr) == (0, b"")
        assert f"{words[0]}/sub/program\n".encode() in done.stdout
        assert f"{words[0]}/a\\nb\n".encode() in done.stdout
    assert sorted(os.listdir(tmp_path)) == ["tree"]


def test_json_has_an_object_for_each_entry(guest: Guest, engine: str, tree: Path, tmp_path: Path) -> None:
    done = cp(guest, "--json", f":{tree}/sub", f":{tree}/none", tmp_path, engine=engine)
    events = [json.loads(line) for line in done.stdout.splitlines()]
    assert done.returncode == 1
    assert {"event": "copied", "path": f":{tree}/sub/program", "bytes": 10} in events
    assert [event for event in events if event["event"] == "failed"] == [
        {"event": "failed", "path": f":{tree}/none", "reason": "cannot read: No such file or directory", "errno": 2}
    ]
    end = events[-1]
    assert (end["event"], end["failed"], end["copied"]) == ("end", 1, len(events) - 2)


@pytest.mark.parametrize("options", [[], ["--resume"]])
def test_json_of_a_dry_run_says_what_would_be(
    guest: Guest, engine: str, tree: Path, tmp_path: Path, options: list[str]
) -> None:
    if options:
        copied(guest, tree / "file", f":{tmp_path}/there", engine=engine)
    done = cp(guest, "--dry-run", "--json", "--stats", *options, tree / "file", f":{tmp_path}/there", engine=engine)
    event, end = map(json.loads, done.stdout.splitlines())
    what = "would-skip" if options else "would-copy"
    expected = {"event": what, "dry_run": True, "path": str(tree / "file")}
    assert {name: value for name, value in event.items() if name != "bytes"} == expected
    assert (end["event"], end["dry_run"], end[what], "copied" in end) == ("end", True, 1, False)
    assert ("1 " + what.replace("would-", "to ")).encode() in done.stderr
    assert (tmp_path / "there").exists() == bool(options)


def test_a_reader_that_has_gone_does_not_end_a_copy(guest: Guest, engine: str, tmp_path: Path) -> None:
    (tmp_path / "many").mkdir()
    for number in range(1000):
        (tmp_path / "many" / f"a-long-name-{number}").touch()
    command = cp_command(guest, "--json", f":{tmp_path}/many", tmp_path / "there", engine=engine)
    with started(command) as child:
        child.stdout.close()
        assert (child.wait(HANG), child.stderr.read()) == (0, b"")
    assert len(os.listdir(tmp_path / "there")) == 1000


def test_a_tar_stream_without_a_reader_ends_as_tar_does(guest: Guest, engine: str, tree: Path) -> None:
    with started(cp_command(guest, f":{tree}", "-", engine=engine)) as child:
        child.stdout.close()
        assert (child.wait(HANG), child.stderr.read()) == (-signal.SIGPIPE, b"")


def test_stats_are_one_line(guest: Guest, engine: str, tree: Path, tmp_path: Path) -> None:
    done = cp(guest, "--stats", f":{tree}/file", tmp_path, engine=engine)
    assert done.stderr.startswith(b"fastvsock: 1 copied, 0 skipped, 0 failed; 7 bytes, ")
    assert done.stderr.count(b"\n") == 1


def test_a_tar_stream_goes_in_and_comes_out(guest: Guest, engine: str, tree: Path, tmp_path: Path) -> None:
    out = cp(guest, f":{tree}", "-", engine=engine)
    assert (out.returncode, out.stderr) == (0, b"")
    with tarfile.open(fileobj=BytesIO(out.stdout)) as stream:
        names = {os.fsencode(name) for name in stream.getnames()}
    assert {b"tree/" + name for name in ODD_NAMES} < names
    (tmp_path / "there").mkdir()
    copied(guest, "-", f":{tmp_path}/there", engine=engine, input=out.stdout)
    assert snapshot(tmp_path / "there" / "tree") == snapshot(tree)


@pytest.mark.parametrize("packing", ["-c", pytest.param("-cz", marks=with_zlib)])
def test_a_tar_of_another_program_goes_in(guest: Guest, engine: str, packing: str, tree: Path, tmp_path: Path) -> None:
    made = subprocess.run(["tar", "-C", tree, packing, "."], capture_output=True, check=True, timeout=HANG)
    (tmp_path / "there").mkdir()
    copied(guest, "-", f":{tmp_path}/there", engine=engine, input=made.stdout)
    here, there = snapshot(tree), snapshot(tmp_path / "there")
    assert set(here) == set(there)
    assert there[b"large"][4] == here[b"large"][4]


@pytest.mark.parametrize(
    "words", [("a", "b"), (":a", ":b"), (":a", "b", "c"), ("a", ":"), (":", "b"), ("-", "a", ":b"), ("a",), ()]
)
def test_wrong_usage_is_told_in_one_line(words: tuple[str, ...]) -> None:
    done = subprocess.run(umbrella("cp", "/nowhere", *words), capture_output=True, timeout=HANG, check=False)
    assert done.returncode == 125
    assert done.stderr.startswith(b"fastvsock: ")
    assert b"Traceback" not in done.stderr


def test_another_user_is_another_user(guest: Guest, engine: str, tree: Path, tmp_path: Path) -> None:
    if os.geteuid():
        pytest.skip("this machine: only root can be another user")
    (tmp_path / "open").mkdir()
    (tmp_path / "open").chmod(0o777)
    for folder in [tmp_path, *list(tmp_path.parents)[:-2]]:
        folder.chmod(folder.stat().st_mode | 0o111)
    copied(guest, "--user=65534", tree / "file", f":{tmp_path}/open", engine=engine)
    assert (tmp_path / "open" / "file").stat().st_uid == 65534
    done = cp(guest, "--user=no-such-user", tree / "file", f":{tmp_path}/open", engine=engine)
    assert (done.returncode, b"cannot run as user no-such-user" in done.stderr) == (126, True)


def test_attributes_are_kept_when_that_is_asked_for(guest: Guest, engine: str, tree: Path, tmp_path: Path) -> None:
    try:
        os.setxattr(tree / "file", "user.colour", b"\0red")
        os.setxattr(tree / "sub", "user.colour", b"blue")
    except OSError:
        pytest.skip("this machine: the file system has no attributes")
    copied(guest, "--xattrs", "--fsync", f":{tree}", tmp_path / "back", engine=engine)
    copied(guest, "--xattrs", "--fsync", tmp_path / "back", f":{tmp_path}/there", engine=engine)
    assert snapshot(tmp_path / "there") == snapshot(tree)
    assert os.getxattr(tmp_path / "there" / "file", "user.colour") == b"\0red"
    assert os.getxattr(tmp_path / "there" / "sub", "user.colour") == b"blue"
    copied(guest, f":{tree}", tmp_path / "without", engine=engine)
    assert not os.listxattr(tmp_path / "without" / "file")


def test_copies_go_through_the_stand_in_for_a_vmm(engine: str, tree: Path, tmp_path: Path) -> None:
    uds = tmp_path / "v.sock"
    with started(umbrella("emulate", "--agent", str(uds)), stderr=subprocess.DEVNULL) as vmm:
        guest = Guest(str(uds), vmm)
        assert within(HANG, uds.exists)
        copied(guest, "--wait=10", tree, f":{tmp_path}/there", engine=engine)
        copied(guest, f":{tmp_path}/there", tmp_path / "back", engine=engine)
        vmm.terminate()  # which ends the agent too
        vmm.wait(HANG)
    assert snapshot(tmp_path / "back") == snapshot(tree)


def test_progress_is_for_terminals(guest: Guest, engine: str, tree: Path, tmp_path: Path) -> None:
    ours, theirs = os.openpty()
    command = cp_command(guest, f":{tree}", tmp_path / "back", engine=engine)
    assert subprocess.run(command, stderr=theirs, timeout=HANG, check=False).returncode == 0
    assert os.read(ours, 1 << 16).endswith(b"\r\x1b[K")
    command.insert(command.index("cp") + 1, "--quiet")
    assert subprocess.run(command, stderr=theirs, timeout=HANG, check=False).returncode == 0
    os.set_blocking(ours, False)
    with pytest.raises(BlockingIOError):
        os.read(ours, 1)
    os.close(ours)
    os.close(theirs)
