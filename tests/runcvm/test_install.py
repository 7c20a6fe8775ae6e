"""`fastvsock runcvm install` on a bundle whose programs really run through its own lib/ld."""

import os
import shutil
import socket
import subprocess
from pathlib import Path

import pytest

from support import HANG
from support.bundles import OLD_TRANSPORT, exec_script, make_bundle, put, runcvm, snapshot
from support.installing import LAUNCHER, SCRIPTS, installed, launched


def test_a_bundle_is_installed_into_and_a_second_install_finds_nothing_to_do(whole: Path) -> None:
    first = installed(whole)
    assert os.readlink(whole / "bin/tar") == os.readlink(whole / "bin/tail") == "busybox"
    assert "-      debugfs\n+      debugfs tar tail\n" in first.stdout
    assert "--- a/scripts/runcvm-ctr-exec\n+++ b/scripts/runcvm-ctr-exec\n@@ " in first.stdout
    assert not [path for path in whole.rglob("*") if path.name.endswith("fastvsock-new")]
    before = snapshot(whole)
    second = installed(whole)
    assert second.stdout == ""
    assert "nothing to do" in second.stderr
    assert snapshot(whole) == before


def test_a_dry_run_shows_all_and_changes_nothing(bundle: Path) -> None:
    before = snapshot(bundle)
    shown = installed(bundle, "--dry-run").stdout
    assert snapshot(bundle) == before
    assert installed(bundle).stdout == shown
    after = snapshot(bundle)
    assert "bin/tar -> busybox" in runcvm("uninstall", bundle, "--dry-run").stdout
    assert snapshot(bundle) == after


def test_the_diff_that_is_shown_is_one_that_patch_applies(bundle: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(bundle, copy, symlinks=True)
    shown = installed(bundle).stdout
    diff = "".join(line for line in shown.splitlines(keepends=True) if not line.startswith(("+lib/", "+bin/")))
    subprocess.run(["patch", "-p1", "-d", copy], input=diff, text=True, check=True, capture_output=True, timeout=HANG)
    assert [(copy / name).read_bytes() for name in SCRIPTS] == [(bundle / name).read_bytes() for name in SCRIPTS]


def test_changing_the_form_starts_from_the_original_and_leaves_nothing_of_the_other(
    bundle: Path, tmp_path: Path
) -> None:
    other = make_bundle(tmp_path / "other")
    before = snapshot(bundle)
    installed(bundle)
    direct = snapshot(bundle)
    installed(bundle, "--proxy")
    installed(other, "--proxy")
    assert (bundle / "scripts/runcvm-ctr-exec").read_bytes() == (other / "scripts/runcvm-ctr-exec").read_bytes()
    assert (bundle / "scripts/fastvsock").exists()
    installed(bundle)
    assert snapshot(bundle) == direct
    assert runcvm("uninstall", bundle).returncode == 0
    assert snapshot(bundle) == before


def test_a_new_version_of_runcvm_is_edited_too_and_becomes_the_original(bundle: Path) -> None:
    installed(bundle)
    put(bundle / "scripts/runcvm-ctr-exec", exec_script("continued"), 0o755)
    put(bundle / LAUNCHER, OLD_TRANSPORT + "# newer\n", 0o755)
    newer = {name: (bundle / name).read_bytes() for name in SCRIPTS[:2]}
    installed(bundle)
    assert "-J" in (bundle / "scripts/runcvm-ctr-exec").read_text()
    assert runcvm("uninstall", bundle).returncode == 0
    assert {name: (bundle / name).read_bytes() for name in newer} == newer


def test_what_cannot_be_done_is_reported_and_the_rest_is_done(bundle: Path) -> None:
    put(bundle / "scripts/runcvm-ctr-exec", "#!/bin/bash\nexec dbclient -p 22222 root@127.0.0.1\n", 0o755)
    script = (bundle / "scripts/runcvm-ctr-exec").read_bytes()
    result = installed(bundle, code=1)
    assert "scripts/runcvm-ctr-exec is left alone: no socat" in result.stderr
    assert (
        "by hand: remove socat, its sleep and its trap, keep exec, and start dbclient by "
        "/.runcvm/guest/scripts/runcvm-vsock-connect UDS PORT -- dbclient -J '&3' in place of -p"
    ) in result.stderr
    assert (bundle / "scripts/runcvm-ctr-exec").read_bytes() == script
    assert "debugfs tar" in (bundle / "scripts/runcvm-ctr-defaults").read_text()
    assert launched(bundle, "--version").startswith("runcvm-vsock-connect ")
    assert runcvm("install", bundle).returncode == 1


def test_a_script_that_bash_would_not_read_after_the_edit_is_left_alone(bundle: Path) -> None:
    script = bundle / "scripts/runcvm-ctr-exec"
    script.write_text(script.read_text() + "if true; then\n")
    before = script.read_bytes()
    assert "bash -n fails on the edited script" in installed(bundle, code=1).stderr
    assert script.read_bytes() == before


@pytest.mark.parametrize("kind", ["fifo", "folder", "socket"])
def test_what_is_not_a_file_in_a_scripts_place_is_reported(bundle: Path, kind: str) -> None:
    script = bundle / "scripts/runcvm-ctr-exec"
    script.unlink()
    if kind == "fifo":
        os.mkfifo(script)
    elif kind == "folder":
        script.mkdir()
    else:
        with socket.socket(socket.AF_UNIX) as sock:
            sock.bind(str(script))
    result = installed(bundle, code=1)
    assert "scripts/runcvm-ctr-exec" in result.stderr
    assert "Traceback" not in result.stderr


@pytest.mark.parametrize("root", ["", "/nowhere/at/all", "/etc/passwd", "/proc"])
def test_a_root_that_is_not_a_bundle_is_refused(root: str) -> None:
    for command in ("install", "uninstall"):
        result = runcvm(command, Path(root) if root else Path("."))
        assert result.returncode == 1
        assert "not a RunCVM bundle" in result.stderr
