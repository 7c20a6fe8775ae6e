"""`fastvsock runcvm uninstall`, and whatever keeps it from restoring every byte."""

import shutil
import subprocess
from pathlib import Path

import pytest

from support import HANG
from support.bundles import put, runcvm, snapshot
from support.installing import JOURNALS, LAUNCHER, SCRIPTS, installed, launched, make_wheel


@pytest.fixture
def wheel(tmp_path: Path) -> Path:
    """A wheel without an engine."""
    return make_wheel(tmp_path / "fastvsock-0.1.0-py3-none-any.whl")


@pytest.mark.parametrize("arguments", [[], ["--proxy"]])
def test_uninstall_restores_every_byte_and_mode(bundle: Path, arguments: list[str]) -> None:
    (bundle / LAUNCHER).chmod(0o640)
    before = snapshot(bundle)
    installed(bundle, *arguments)
    assert (bundle / LAUNCHER).stat().st_mode & 0o777 == 0o751
    assert runcvm("uninstall", bundle).returncode == 0
    assert snapshot(bundle) == before
    again = runcvm("uninstall", bundle)
    assert (again.returncode, again.stdout) == (0, "")


def test_uninstall_does_not_undo_what_others_changed_since_unless_forced(bundle: Path) -> None:
    before = snapshot(bundle)
    installed(bundle)
    script = bundle / "scripts/runcvm-ctr-defaults"
    script.write_text(script.read_text() + "# mine\n")
    changed = snapshot(bundle)
    refused = runcvm("uninstall", bundle)
    assert refused.returncode == 1
    assert "scripts/runcvm-ctr-defaults was changed since" in refused.stderr
    assert snapshot(bundle) == changed
    assert runcvm("uninstall", bundle, "--force").returncode == 0
    assert snapshot(bundle) == before


@pytest.mark.parametrize("arguments", [[], ["--proxy"]])
def test_our_own_files_never_become_originals(bundle: Path, wheel: Path, arguments: list[str]) -> None:
    originals = {name: (bundle / name).read_bytes() for name in SCRIPTS}
    installed(bundle, *arguments)
    backups = snapshot(bundle / ".fastvsock/backup")
    for name in JOURNALS:
        (bundle / name).unlink()
    for files in ((), ("--wheel", wheel)):
        installed(bundle, *arguments, *files)
        refused = runcvm("uninstall", bundle)
        assert refused.returncode == 1
        assert f"{LAUNCHER} was installed by fastvsock and its original is lost" in refused.stderr
        assert launched(bundle, "--version").startswith("runcvm-vsock-connect ")
    kept = snapshot(bundle / ".fastvsock/backup")
    assert backups.items() - kept.items() == {("manifest.json", backups["manifest.json"])}
    for name, data in originals.items():  # as their owner would, from RunCVM's image
        (bundle / name).write_bytes(data)
    assert runcvm("uninstall", bundle).returncode == 0
    assert {name: (bundle / name).read_bytes() for name in SCRIPTS} == originals
    assert not (bundle / "lib/fastvsock").exists()


def test_a_launcher_that_was_edited_is_replaced_and_does_not_become_the_original(bundle: Path) -> None:
    before = snapshot(bundle)
    installed(bundle)
    put(bundle / LAUNCHER, (bundle / LAUNCHER).read_text() + "# mine\n", 0o755)
    installed(bundle)
    assert "# mine" not in (bundle / LAUNCHER).read_text()
    assert runcvm("uninstall", bundle).returncode == 0
    assert snapshot(bundle) == before


def test_what_others_put_beside_our_files_is_left_and_reported(bundle: Path) -> None:
    installed(bundle)
    site = next((bundle / "lib/fastvsock").iterdir()).relative_to(bundle)
    theirs = ["lib/fastvsock/mine/notes", f"{site}/fastvsock/notes.txt", ".fastvsock/notes", ".fastvsock/backup/a.tar"]
    (bundle / "lib/fastvsock/mine").mkdir()
    for name in theirs:
        put(bundle / name, "mine", 0o644)
    result = runcvm("uninstall", bundle)
    assert result.returncode == 0
    assert all(f"{name} is not fastvsock's and stays" in result.stderr for name in theirs)
    found = [*(bundle / "lib/fastvsock").rglob("*"), *(bundle / ".fastvsock").rglob("*")]
    assert sorted(str(path.relative_to(bundle)) for path in found if path.is_file()) == sorted(theirs)


def test_the_package_stays_while_a_script_names_it(bundle: Path) -> None:
    installed(bundle)
    shutil.copy(bundle / LAUNCHER, bundle / "scripts/mine")
    result = runcvm("uninstall", bundle)
    assert result.returncode == 0
    assert "stays: scripts/mine names it" in result.stderr
    copied = subprocess.run([bundle / "scripts/mine", "--version"], capture_output=True, timeout=HANG, check=False)
    assert copied.returncode == 0
    (bundle / "scripts/mine").unlink()
    assert runcvm("uninstall", bundle).returncode == 0
    assert not (bundle / "lib/fastvsock").exists()


def test_an_exec_script_that_stays_in_the_form_of_proxy_keeps_its_launcher(bundle: Path) -> None:
    installed(bundle, "--proxy")
    script = bundle / "scripts/runcvm-ctr-exec"
    put(script, script.read_text() + "# mine\n", 0o755)
    installed(bundle)
    assert "proxy --wait 10 /run/firecracker.vsock" in script.read_text()
    assert (bundle / "scripts/fastvsock").exists()
