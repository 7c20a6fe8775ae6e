"""`Guest.put` and `Guest.get`, and those of `AsyncGuest`."""

import asyncio
import errno
import os
import pickle
from pathlib import Path

import pytest

import fastvsock
from fastvsock.copying import entries
from support import HANG
from support.channels import Guest
from support.copying import FarEnd, agent_that, make_tree, snapshot


def test_put_and_get_list_what_they_copied(guest: Guest, engine: str, tmp_path: Path) -> None:
    tree = make_tree(tmp_path / "tree")
    remote = fastvsock.Guest(guest.uds, engine=engine)
    result = remote.put(tree, tmp_path / "there")
    assert result.is_complete
    assert sorted(map(os.fsencode, result.copied)) == sorted(
        os.path.normpath(os.path.join(os.fsencode(tree), path)) for path in snapshot(tree) if not path.endswith(b"/.")
    )
    back = remote.get([tmp_path / "there" / "file", tmp_path / "none"], tmp_path, exclude=["x"], check=False)
    assert back.copied == [f":{tmp_path}/there/file"]
    assert [(failure.path, failure.errno) for failure in back.failed] == [(f":{tmp_path}/none", 2)]
    assert str(back.failed[0]) == f":{tmp_path}/none: cannot read: No such file or directory"
    again = remote.put(tree / "file", tmp_path / "there", resume=True)
    assert (again.copied, again.skipped, again.bytes) == ([], [f"{tree}/file"], 0)


@pytest.mark.skipif(not hasattr(os, "setxattr"), reason="by design: CPython 3.11 for musl has no attributes")
def test_a_folder_whose_attributes_have_no_room_is_copied_without_them(
    guest: Guest, engine: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tree = tmp_path / "tree"
    tree.mkdir()
    (tree / "file").write_bytes(b"content")
    try:
        os.setxattr(tree, "user.colour", b"blue")
    except OSError:
        pytest.skip("this machine: the file system has no extended attributes")
    monkeypatch.setattr(entries, "MAX_XATTRS", 1)
    result = fastvsock.Guest(guest.uds, engine=engine).put(tree, tmp_path / "there", xattrs=True, check=False)
    assert [(failure.path, failure.errno) for failure in result.failed] == [(f"{tree}", errno.E2BIG)]
    assert (tmp_path / "there" / "file").read_bytes() == b"content"
    assert (tmp_path / "there").stat().st_mtime_ns == tree.stat().st_mtime_ns


def test_progress_is_called_with_bytes(guest: Guest, engine: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(bytes(5 << 20))
    for way in ("put", "get"):
        seen: list[int] = []
        copy = getattr(fastvsock.Guest(guest.uds, engine=engine), way)
        copy(tmp_path / "file", tmp_path / way, progress=lambda content, path, seen=seen: seen.append(content))
        assert seen[-1] == 5 << 20
        assert seen == sorted(seen)


def test_errors_have_the_classes_that_a_program_expects(guest: Guest, engine: str, tmp_path: Path) -> None:
    remote = fastvsock.Guest(guest.uds, engine=engine)
    with pytest.raises(FileNotFoundError):
        remote.put(__file__, tmp_path / "none" / "file")
    with pytest.raises(fastvsock.StreamError):
        remote.get(__file__, tmp_path / "none" / "file")
    with pytest.raises(ValueError, match="no source"):
        remote.get([], tmp_path)


@pytest.mark.parametrize("way", ["put", "get"])
def test_a_copy_that_leaves_something_out_raises_in_the_end(
    guest: Guest, engine: str, tmp_path: Path, way: str
) -> None:
    copy = getattr(fastvsock.Guest(guest.uds, engine=engine), way)
    colon = ":" if way == "get" else ""
    with pytest.raises(FileNotFoundError) as caught:
        copy([tmp_path / "none", __file__, tmp_path / "neither"], tmp_path)
    assert isinstance(caught.value, fastvsock.CopyError)
    reason = "cannot read: No such file or directory"
    assert str(caught.value) == f"{colon}{tmp_path}/none: {reason} (and 1 more in `failed`)"
    assert [failure.path for failure in caught.value.failed] == [f"{colon}{tmp_path}/{n}" for n in ("none", "neither")]
    assert caught.value.result.copied == [f"{colon}{__file__}"]
    again = pickle.loads(pickle.dumps(caught.value))
    assert (type(again), str(again), again.errno) == (type(caught.value), str(caught.value), 2)
    (tmp_path / "into").mkdir()
    os.mkfifo(tmp_path / "into" / "file")
    (tmp_path / "file").touch()
    with pytest.raises(fastvsock.CopyError, match="not copied over the FIFO of this name"):
        copy(tmp_path / "file", tmp_path / "into")
    with pytest.raises(fastvsock.CopyError, match="not copied over the FIFO of this name"):
        asyncio.run(getattr(fastvsock.AsyncGuest(guest.uds, engine=engine), way)(tmp_path / "file", tmp_path / "into"))


def test_copies_run_side_by_side_in_a_loop(guest: Guest, engine: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"content")

    async def run() -> list[fastvsock.CopyResult]:
        remote = fastvsock.AsyncGuest(guest.uds, engine=engine)
        puts = [remote.put(tmp_path / "file", tmp_path / str(n), progress=lambda content, path: None) for n in range(8)]
        return await asyncio.gather(*puts)

    assert all(result.is_complete for result in asyncio.run(run()))
    assert {(tmp_path / str(n)).read_bytes() for n in range(8)} == {b"content"}


def test_cancelling_cuts_the_connection(tmp_path: Path, engine: str) -> None:
    silent: list[bool] = []

    async def run(uds: str) -> None:
        copy = asyncio.ensure_future(fastvsock.AsyncGuest(uds, engine=engine).get("/file", tmp_path / "back"))
        while not silent:
            await asyncio.sleep(0.01)
        copy.cancel()
        with pytest.raises(asyncio.CancelledError):
            await copy

    def act(end: FarEnd) -> None:
        silent.append(True)

    with agent_that(tmp_path / "agent.sock", act) as guest:
        asyncio.run(asyncio.wait_for(run(guest.uds), HANG))
    assert not (tmp_path / "back").exists()
