"""Owners that are kept, writes that fail, and diffs that cannot be shown."""

import errno
import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from fastvsock.errors import BundleError
from fastvsock.runcvm.bundle_files import Meta, Root
from support import HANG, called
from support.bundles import runcvm, snapshot
from support.installing import SCRIPTS, installed


def test_the_owner_of_a_script_is_kept(bundle: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("this machine: only root can give a file away")
    for name in SCRIPTS:
        os.chown(bundle / name, 1234, 1235)
    installed(bundle)
    assert {(bundle / name).stat().st_uid for name in SCRIPTS} == {1234}
    assert runcvm("uninstall", bundle).returncode == 0
    assert {(bundle / name).stat().st_gid for name in SCRIPTS} == {1235}


def without_chown(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    """`fastvsock runcvm`, by root without CAP_CHOWN: as in a pod that drops all capabilities."""
    setpriv = shutil.which("setpriv")
    if os.geteuid() != 0 or setpriv is None:
        pytest.skip("this machine: only root can lack that")
    confined = [setpriv, "--bounding-set=-chown", "--inh-caps=-chown", *called("fastvsock"), "runcvm"]
    return subprocess.run([*confined, *arguments], capture_output=True, text=True, timeout=HANG, check=False)


@pytest.mark.parametrize("arguments", [["install", "--dry-run"], ["install"], ["uninstall"]])
def test_an_owner_that_cannot_be_kept_is_found_before_anything_is_changed(bundle: Path, arguments: list[str]) -> None:
    name = "scripts/runcvm-ctr-exec"
    os.chown(bundle / name, 1234, 1235)
    if arguments == ["uninstall"]:
        installed(bundle)
    before = snapshot(bundle)
    result = without_chown(*arguments, "--root", bundle)
    assert result.returncode == 1
    assert result.stderr == (
        f"fastvsock: {bundle}/{name}: its owner 1234:1235 cannot be kept without CAP_CHOWN: nothing was changed: "
        f"run as root with CAP_CHOWN\n"
    )
    assert snapshot(bundle) == before


def test_a_new_file_is_not_held_up_by_an_owner_that_it_cannot_have(bundle: Path) -> None:
    os.chown(bundle, 1234, 1235)
    bundle.chmod(0o777)  # root without CAP_DAC_OVERRIDE, which `drop: ALL` takes away as well
    result = without_chown("install", "--proxy", "--root", bundle)
    assert result.returncode == 0, result.stderr
    assert (bundle / "scripts/fastvsock").stat().st_uid == 0


def failing(number: int) -> Callable[..., None]:
    """A system call that fails with this errno, and names no file."""

    def fail(*arguments: object, **options: object) -> None:
        raise OSError(number, os.strerror(number))

    return fail


@pytest.mark.parametrize(
    ("call", "number", "words"),
    [
        ("fsync", errno.ENOSPC, "No space left on device"),
        ("fchmod", errno.EPERM, "Operation not permitted"),
        ("rename", errno.EIO, "Input/output error"),
    ],
)
def test_a_write_that_fails_names_its_file_and_leaves_nothing_beside_it(
    bundle: Path, monkeypatch: pytest.MonkeyPatch, call: str, number: int, words: str
) -> None:
    path = "scripts/runcvm-ctr-defaults"
    before = snapshot(bundle)
    monkeypatch.setattr(os, call, failing(number))
    with Root(str(bundle)) as root, pytest.raises(BundleError) as caught:
        root.write(path, b"new", Meta(0o644, os.geteuid(), os.getegid()))
    assert str(caught.value) == f"{bundle}/{path}: cannot be written: {words}"
    assert snapshot(bundle) == before


def test_a_write_that_cannot_keep_the_owner_says_so(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = snapshot(bundle)
    monkeypatch.setattr(os, "fchown", failing(errno.EPERM))
    with Root(str(bundle)) as root, pytest.raises(BundleError) as caught:
        root.write("scripts/runcvm-ctr-exec", b"new", Meta(0o644, 1234, 1235))
    assert str(caught.value).endswith("/runcvm-ctr-exec: its owner 1234:1235 cannot be kept without CAP_CHOWN")
    assert snapshot(bundle) == before


def test_a_file_system_that_cannot_be_written_is_reported_in_a_sentence(
    bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "mkdir", failing(errno.EROFS))
    result = installed(bundle, code=1)
    assert result.stderr.splitlines()[-1] == f"fastvsock: {bundle}/.fastvsock: cannot be made: Read-only file system"


@pytest.mark.parametrize("command", ["install", "uninstall"])
def test_a_diff_that_cannot_be_shown_is_not_carried_out(bundle: Path, command: str) -> None:
    if command == "uninstall":
        installed(bundle)
    before = snapshot(bundle)
    whole = [*called("fastvsock"), "runcvm", command, "--root", str(bundle)]
    reader, writer = os.pipe()
    os.close(reader)
    with open("/dev/full", "wb") as full, open(writer, "wb") as closed:
        for stdout, words in ((full, "No space left on device"), (closed, "Broken pipe")):
            result = subprocess.run(whole, stdout=stdout, stderr=subprocess.PIPE, text=True, timeout=HANG, check=False)
            assert result.returncode == 1
            said = f"cannot write the output: {words}; the changes cannot be shown, so none was made"
            assert result.stderr == f"fastvsock: {said}\n"
            assert snapshot(bundle) == before


@pytest.mark.parametrize("arguments", [["check"], ["install", "--dry-run"]])
def test_a_full_disk_behind_stdout_is_not_the_bundles_fault(bundle: Path, arguments: list[str]) -> None:
    whole = [*called("fastvsock"), "runcvm", *arguments, "--root", str(bundle)]
    with open("/dev/full", "wb") as full:
        result = subprocess.run(whole, stdout=full, stderr=subprocess.PIPE, text=True, timeout=HANG, check=False)
    assert result.returncode == 1
    assert result.stderr == "fastvsock: cannot write the output: No space left on device\n"


@pytest.mark.parametrize("code", [0, 1])
def test_a_dry_run_whose_reader_has_seen_enough_ends_like_any_other(bundle: Path, code: int) -> None:
    if code:
        (bundle / "scripts/runcvm-ctr-exec").write_text("#!/bin/sh\n")  # whose shape is unknown
    whole = [*called("fastvsock"), "runcvm", "install", "--dry-run", "--root", str(bundle)]
    reader, writer = os.pipe()
    os.close(reader)
    with open(writer, "wb") as closed:
        result = subprocess.run(whole, stdout=closed, stderr=subprocess.PIPE, text=True, timeout=HANG, check=False)
    usual = installed(bundle, "--dry-run", code=code)
    assert (result.returncode, result.stderr) == (code, usual.stderr)
