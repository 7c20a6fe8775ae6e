"""One install or uninstall at a time, by a lock that nobody but the bundle's owner can hold."""

import fcntl
import os
import signal
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from fastvsock.errors import BundleError
from fastvsock.runcvm import install
from support.bundles import exec_script, put, runcvm, snapshot
from support.installing import installed

LOCK = ".fastvsock/lock"
HELD = "another install or uninstall is running in this bundle"


def test_two_installs_at_the_same_time_do_not_mix(bundle: Path) -> None:
    before = snapshot(bundle)
    with install.opened(str(bundle), lock=True):
        for command in ("install", "uninstall"):
            result = runcvm(command, bundle)
            assert (result.returncode, result.stderr) == (1, f"fastvsock: {bundle}: {HELD}\n")
        with install.opened(str(bundle), lock=False):
            assert runcvm("install", bundle, "--dry-run").returncode == 0
    assert snapshot(bundle) == before


def test_only_the_owner_can_open_the_lock_whatever_the_umask(bundle: Path) -> None:
    former = os.umask(0)
    try:
        installed(bundle)
    finally:
        os.umask(former)
    status = (bundle / LOCK).stat()
    assert stat.S_IMODE(status.st_mode) == 0o600
    assert status.st_uid == os.geteuid()
    (bundle / LOCK).chmod(0o666)
    assert "nothing to do" in installed(bundle).stderr
    assert stat.S_IMODE((bundle / LOCK).stat().st_mode) == 0o600


@pytest.mark.parametrize("first", [True, False])
def test_another_user_cannot_keep_an_install_from_running(bundle: Path, first: bool) -> None:
    if os.geteuid() != 0:
        pytest.skip("this machine: only root can be another user")
    if not first:
        installed(bundle)
    with held_by_another_user(bundle):
        installed(bundle)
        assert runcvm("uninstall", bundle).returncode == 0


@contextmanager
def held_by_another_user(bundle: Path) -> Iterator[None]:
    """A process of another user that holds a lock on everything in the bundle that it can open."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        os.chdir(bundle)
        os.setgroups([])
        os.setgid(65534)
        os.setuid(65534)
        for path in [Path("."), *Path(".").rglob("*")]:
            with suppress(OSError):
                fcntl.flock(os.open(path, os.O_RDONLY | os.O_NONBLOCK), fcntl.LOCK_EX | fcntl.LOCK_NB)
        os.write(writer, b"held")
        signal.pause()
    os.close(writer)
    try:
        assert os.read(reader, 4) == b"held"
        yield
    finally:
        os.close(reader)
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)


def test_a_lock_that_a_killed_install_left_holds_nobody_up(bundle: Path) -> None:
    installed(bundle)
    assert (bundle / LOCK).exists()
    installed(bundle, "--proxy")


def test_nothing_stays_behind_where_nothing_is_installed(bundle: Path) -> None:
    before = snapshot(bundle)
    result = runcvm("uninstall", bundle)
    assert (result.returncode, result.stderr) == (0, f"fastvsock: {bundle}: nothing to do\n")
    assert snapshot(bundle) == before
    installed(bundle)
    assert runcvm("uninstall", bundle).returncode == 0
    assert snapshot(bundle) == before


def test_a_lock_that_was_removed_while_it_was_opened_is_not_taken_for_the_lock(
    bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = fcntl.flock
    removed: list[int] = []

    def flock(fd: int, operation: int) -> None:
        if not removed:  # the holder before us uninstalled, and has just ended
            removed.append((bundle / LOCK).stat().st_ino)
            (bundle / LOCK).rename(bundle / "aside")
        real(fd, operation)

    monkeypatch.setattr(fcntl, "flock", flock)
    with install.opened(str(bundle), lock=True):
        assert (bundle / LOCK).stat().st_ino != removed[0]
        with pytest.raises(BundleError, match=HELD), install.opened(str(bundle), lock=True):
            pass


@pytest.mark.parametrize("kind", ["fifo", "folder", "link"])
def test_what_is_not_a_file_in_the_locks_place_is_refused(bundle: Path, tmp_path: Path, kind: str) -> None:
    (bundle / ".fastvsock").mkdir()
    if kind == "fifo":
        os.mkfifo(bundle / LOCK)
    elif kind == "folder":
        (bundle / LOCK).mkdir()
    else:
        put(tmp_path / "outside", "", 0o644)
        (bundle / LOCK).symlink_to(tmp_path / "outside")
    result = installed(bundle, code=1)
    assert result.stderr.startswith(f"fastvsock: {bundle}/{LOCK}: cannot be opened: ")
    assert result.stderr.count("\n") == 1
    assert (bundle / "scripts/runcvm-ctr-exec").read_text() == exec_script("fork")
    assert kind != "link" or (tmp_path / "outside").stat().st_mode & 0o777 == 0o644
