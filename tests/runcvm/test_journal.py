"""The journal of an installation and the backups: damaged, gone, or made up."""

import json
import shutil
from hashlib import sha256
from pathlib import Path

import pytest

from support.bundles import put, runcvm, snapshot
from support.installing import JOURNALS, LAUNCHER, installed, launched


def test_a_damaged_backup_is_reported_and_nothing_is_restored_from_it(bundle: Path) -> None:
    installed(bundle)
    for backup in (bundle / ".fastvsock/backup").iterdir():
        backup.write_bytes(backup.read_bytes()[:-1])
    before = snapshot(bundle)
    result = runcvm("uninstall", bundle)
    assert result.returncode == 1
    assert "its backup is missing or damaged" in result.stderr
    assert snapshot(bundle) == before


BAD_JOURNALS = [
    "",
    "[]",
    "{",
    '{"format": 2}',
    '{"entries": {"bin/tar": 1}}',
    '{"entries": {"../x": {"before": null}}}',
    '{"entries": {"bin/tar": {"before": "../../scripts/runcvm-ctr-exec", "meta": [0, 0, 0], "after": []}}}',
    '{"entries": {"bin/tar": {"before": null, "meta": null, "after": [], "link": 1}}}',
]


@pytest.mark.parametrize("journal", BAD_JOURNALS)
def test_a_journal_that_cannot_be_parsed_stops_everything(bundle: Path, journal: str) -> None:
    installed(bundle)
    put(bundle / ".fastvsock/manifest.json", journal, 0o644)
    before = snapshot(bundle)
    for command in ("install", "uninstall"):
        result = runcvm(command, bundle)
        assert result.returncode == 1
        assert "cannot be parsed" in result.stderr
        assert "originals are in .fastvsock/backup" in result.stderr
    assert snapshot(bundle) == before


@pytest.mark.parametrize("arguments", [[], ["--proxy"]])
def test_a_journal_that_is_gone_is_read_from_the_copy_beside_the_backups(bundle: Path, arguments: list[str]) -> None:
    before = snapshot(bundle)
    installed(bundle, *arguments)
    after = snapshot(bundle)
    (bundle / JOURNALS[0]).unlink()
    installed(bundle, *arguments)
    assert snapshot(bundle) == after
    (bundle / JOURNALS[0]).unlink()
    assert runcvm("uninstall", bundle).returncode == 0
    assert snapshot(bundle) == before


@pytest.mark.parametrize("lost", ["both journals", "the folder"])
def test_without_any_journal_nothing_that_exec_needs_is_removed(bundle: Path, lost: str) -> None:
    installed(bundle)
    for name in JOURNALS:
        (bundle / name).unlink()
    if lost == "the folder":
        shutil.rmtree(bundle / ".fastvsock")
    before = snapshot(bundle)
    for arguments in ([], ["--dry-run"], ["--force"]):
        result = runcvm("uninstall", bundle, *arguments)
        assert result.returncode == 1
        assert f"{LAUNCHER} was installed by fastvsock and its original is lost: restore it from" in result.stderr
        where = (
            "from .fastvsock/backup, where it is named by its SHA-256" if lost == "both journals" else "RunCVM's image"
        )
        assert where in result.stderr
        assert snapshot(bundle) == before
    assert launched(bundle, "--version").startswith("runcvm-vsock-connect ")


def test_a_journal_that_names_files_outside_of_the_root_reaches_none(bundle: Path, tmp_path: Path) -> None:
    put(tmp_path / "outside", "mine", 0o644)
    installed(bundle)
    path = bundle / ".fastvsock/manifest.json"
    journal = json.loads(path.read_text())
    journal["entries"]["../../outside"] = {"before": None, "meta": None, "after": [sha256(b"mine").hexdigest()]}
    path.write_text(json.dumps(journal))
    for arguments in (["install"], ["uninstall", "--force"]):
        assert "leads out of the bundle" in runcvm(arguments[0], bundle, *arguments[1:]).stderr
    assert (tmp_path / "outside").read_text() == "mine"
