"""A bundle that something else changes while an install or uninstall is at work on it."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from fastvsock.runcvm.bundle_files import Root
from support.bundles import OLD_TRANSPORT, exec_script, put, runcvm, snapshot
from support.installing import LAUNCHER, SCRIPTS, installed

EXEC = "scripts/runcvm-ctr-exec"
DEFAULTS = "scripts/runcvm-ctr-defaults"


def replace_by_link(path: Path) -> None:
    """Another program puts a link in the file's place."""
    path.unlink()
    path.symlink_to("elsewhere")


def replace_by_folder(path: Path) -> None:
    """Another program puts a folder in the file's place."""
    path.unlink()
    path.mkdir()


NEWER: dict[str, Callable[[Path], None]] = {
    "another content": lambda path: put(path, "#!/bin/bash\n# RunCVM's next version\n", 0o755),
    "another mode": lambda path: path.chmod(0o700),
    "nothing": lambda path: path.unlink(),
    "a link": replace_by_link,
    "a folder": replace_by_folder,
}


def change_before(monkeypatch: pytest.MonkeyPatch, bundle: Path, path: str, change: Callable[[Path], None]) -> None:
    """Have `change` happen to `path` as late as a program can see: when its replacement is made and synced."""
    real = os.fsync
    done = False

    def fsync(fd: int) -> None:
        nonlocal done
        real(fd)
        if not done and os.readlink(f"/proc/self/fd/{fd}").endswith(f"/.{os.path.basename(path)}.fastvsock-new"):
            done = True
            change(bundle / path)

    monkeypatch.setattr(os, "fsync", fsync)


@pytest.mark.parametrize("path", SCRIPTS)
@pytest.mark.parametrize("what", NEWER)
def test_a_file_that_was_replaced_meanwhile_is_left_as_it_is_and_the_rest_can_be_uninstalled(
    bundle: Path, monkeypatch: pytest.MonkeyPatch, path: str, what: str
) -> None:
    before = snapshot(bundle)
    change_before(monkeypatch, bundle, path, NEWER[what])
    result = installed(bundle, code=1)
    assert result.stderr.splitlines()[-1] == (
        f"fastvsock: {bundle}/{path}: something else changed it during this run, so it was left as it is now: "
        "run the command again"
    )
    theirs = snapshot(bundle).get(path)
    assert theirs != before[path]
    assert not [name for name in snapshot(bundle) if name.endswith("fastvsock-new")]
    assert runcvm("uninstall", bundle).returncode == 0
    after = snapshot(bundle)
    assert after.pop(path, None) == theirs
    before.pop(path)
    assert after == before


def test_a_new_version_that_came_during_an_upgrade_becomes_the_original_of_the_next_run(
    bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    installed(bundle)
    newer = exec_script("continued")
    change_before(monkeypatch, bundle, EXEC, lambda path: put(path, newer, 0o755))
    assert "something else changed it" in installed(bundle, "--proxy", code=1).stderr
    assert (bundle / EXEC).read_text() == newer
    installed(bundle, "--proxy")
    assert "proxy" in (bundle / EXEC).read_text()
    assert runcvm("uninstall", bundle).returncode == 0
    assert (bundle / EXEC).read_text() == newer
    assert (bundle / LAUNCHER).read_text() == OLD_TRANSPORT


def test_a_link_or_a_removal_looks_again_as_well(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = Root.make_folder

    def make_folder(root: Root, path: str) -> None:
        real(root, path)
        if path == ".fastvsock/backup":
            put(bundle / "bin/tar", "RunCVM's own\n", 0o755)

    monkeypatch.setattr(Root, "make_folder", make_folder)
    assert "bin/tar: something else changed it" in installed(bundle, code=1).stderr
    assert (bundle / "bin/tar").read_text() == "RunCVM's own\n"


def test_a_new_version_that_came_during_an_upgrade_stays_when_the_rest_is_uninstalled(
    bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = snapshot(bundle)
    installed(bundle)
    change_before(monkeypatch, bundle, EXEC, NEWER["another content"])
    assert "something else changed it" in installed(bundle, "--proxy", code=1).stderr
    assert runcvm("uninstall", bundle).returncode == 0
    after = snapshot(bundle)
    assert b"next version" in after.pop(EXEC)[1]
    before.pop(EXEC)
    assert after == before


@pytest.mark.parametrize("path", [EXEC, LAUNCHER, DEFAULTS])
def test_an_uninstall_does_not_overwrite_what_was_replaced_meanwhile(
    bundle: Path, monkeypatch: pytest.MonkeyPatch, path: str
) -> None:
    before = snapshot(bundle)
    installed(bundle)
    change_before(monkeypatch, bundle, path, NEWER["another content"])
    result = runcvm("uninstall", bundle)
    assert result.returncode == 1
    assert f"{path}: something else changed it during this run" in result.stderr
    assert "next version" in (bundle / path).read_text()
    assert "was changed since it was installed" in runcvm("uninstall", bundle).stderr
    assert runcvm("uninstall", bundle, "--force").returncode == 0
    assert snapshot(bundle) == before


def test_a_launcher_of_ours_that_went_away_meanwhile_is_not_missed(
    bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    installed(bundle, "--proxy")
    real = Root.write

    def write(root: Root, path: str, *arguments: object) -> None:
        real(root, path, *arguments)  # type: ignore[arg-type]
        (bundle / "scripts/fastvsock").unlink(missing_ok=True)

    monkeypatch.setattr(Root, "write", write)
    assert runcvm("uninstall", bundle).returncode == 0
    assert not (bundle / ".fastvsock").exists()
