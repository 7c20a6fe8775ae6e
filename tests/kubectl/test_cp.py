"""`kubectl cp` there and back: files, trees, 100 MB, odd names, and a connection that ends too early."""

import hashlib
import os
from pathlib import Path

import pytest

from support import kubectl
from support.kubectl import Pod, inside
from support.ways import WAYS, Exec, Way

EATEN = ("Ä.txt", "… .txt", "two\nlines")  # by the encoding of RunCVM's script
ODD_NAMES = ("two  words", 'it\'s "quoted"', "$HOME `id`; &", "-x", *EATEN)
CARRIED = [
    pytest.param(way, name, id=f"{way.name}-{name!a}")
    for way in WAYS
    for name in ODD_NAMES
    if way.any_bytes or name not in EATEN
]


@pytest.fixture
def guest(tmp_path: Path) -> Path:
    """A folder in the guest."""
    folder = tmp_path / "guest"
    folder.mkdir()
    return folder


def content(folder: Path) -> dict[str, tuple[int, bytes | None]]:
    """All that is below a folder: mode, and of a file its bytes."""
    return {
        str(path.relative_to(folder)): (path.stat().st_mode, path.read_bytes() if path.is_file() else None)
        for path in folder.rglob("*")
    }


def make_tree(folder: Path) -> Path:
    """Files of many sizes, some in folders of folders, one of them empty, one of them a program."""
    for number, size in enumerate((0, 1, 511, 512, 513, 10_240, 32_768, 70_001, 1_000_000)):
        file = folder / "deep" / str(number % 3) / f"{size} bytes"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(os.urandom(size))
    (folder / "empty").mkdir()
    (folder / "run").write_text("#!/bin/sh\n")
    (folder / "run").chmod(0o755)
    return folder


def digest(path: Path) -> str:
    """The SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def test_a_file_is_copied_there_and_back(pod: Pod, tmp_path: Path, guest: Path) -> None:
    source = tmp_path / "source"
    source.write_bytes(os.urandom(1_000_003))
    source.chmod(0o750)
    pod.copy(source, inside(guest / "there"))
    pod.copy(inside(guest / "there"), tmp_path / "back")
    for copy in (guest / "there", tmp_path / "back"):
        assert copy.read_bytes() == source.read_bytes()
    assert (guest / "there").stat().st_mode == source.stat().st_mode


def test_a_tree_is_copied_there_and_back(pod: Pod, tmp_path: Path, guest: Path) -> None:
    source = make_tree(tmp_path / "source")
    pod.copy(source, inside(guest / "there"))
    assert content(guest / "there") == content(source)
    pod.copy(inside(guest / "there"), tmp_path / "back")
    assert {name: data for name, (_, data) in content(tmp_path / "back").items()} == {
        name: data for name, (_, data) in content(source).items()
    }


@pytest.mark.timeout(300)
def test_100_mb_arrive_unchanged_in_both_directions(pod: Pod, tmp_path: Path, guest: Path) -> None:
    source = tmp_path / "source"
    source.write_bytes(os.urandom(100_000_000))
    pod.copy(source, inside(guest / "there"))
    assert digest(guest / "there") == digest(source)
    pod.copy(inside(guest / "there"), tmp_path / "back")
    assert digest(tmp_path / "back") == digest(source)


def test_a_copy_that_is_cut_goes_on_with_retries(
    way: Way, reached: Exec, program: Path, tmp_path: Path, guest: Path
) -> None:
    (guest / "there").write_bytes(os.urandom(5_000_000))
    with kubectl.pod(way, reached, program, tmp_path, "--cut=2000000") as pod:
        done = pod.copy(inside(guest / "there"), tmp_path / "back", "--retries=3")
    assert b"Resuming copy at" in done.stdout + done.stderr
    assert digest(tmp_path / "back") == digest(guest / "there")


@pytest.mark.parametrize(("way", "name"), CARRIED, indirect=["way"], scope="session")
def test_a_folder_and_a_file_of_an_odd_name_are_copied(pod: Pod, tmp_path: Path, guest: Path, name: str) -> None:
    source = tmp_path / name
    source.mkdir()
    (source / name).write_text("odd")
    pod.copy(source, inside(guest / name))
    assert content(guest / name) == content(source)
    pod.copy(inside(guest / name / name), tmp_path / "back")
    assert (tmp_path / "back").read_text() == "odd"


@pytest.mark.parametrize("name", EATEN)
@pytest.mark.parametrize("way", [way for way in WAYS if not way.any_bytes], indirect=True, ids=lambda way: way.name)
def test_a_name_that_the_scripts_encoding_eats_is_not_found(pod: Pod, tmp_path: Path, guest: Path, name: str) -> None:
    (guest / name).write_text("odd")
    pod.run("cp", inside(guest / name), tmp_path / "back")  # 0 is its status for a file that is not there
    assert not (tmp_path / "back").exists()
