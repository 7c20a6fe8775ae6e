"""Links in a bundle: followed inside of the root, and never out of it."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from fastvsock.errors import BundleError
from fastvsock.runcvm.bundle_files import Meta, Root
from support.bundles import runcvm, snapshot
from support.installing import SCRIPTS, installed, launched

WAYS_OUT = [
    "bin",
    "lib",
    "scripts",
    "lib/fastvsock",
    ".fastvsock",
    ".fastvsock/backup",
    *SCRIPTS,
    ".fastvsock/manifest.json",
]


@pytest.mark.parametrize("absolute", [True, False])
@pytest.mark.parametrize("path", WAYS_OUT)
def test_no_link_out_of_the_root_is_followed(bundle: Path, tmp_path: Path, path: str, absolute: bool) -> None:
    outside = tmp_path / "outside"
    inner = bundle / path
    if os.path.lexists(inner):
        inner.rename(outside)
    elif inner.suffix == ".json":
        outside.write_text('{"format": 1, "entries": {}}')
    else:
        outside.mkdir()
    inner.parent.mkdir(exist_ok=True)
    inner.symlink_to(outside if absolute else os.path.relpath(outside, inner.parent))
    before = snapshot(tmp_path)
    for arguments in (["install"], ["install", "--proxy"], ["uninstall", "--force"]):
        result = runcvm(arguments[0], bundle, *arguments[1:])
        assert "Traceback" not in result.stderr
        if arguments[0] == "install":
            assert result.returncode == 1
            assert "leads out of the bundle" in result.stderr or "not a RunCVM bundle" in result.stderr
        after = snapshot(tmp_path)
        assert {name: what for name, what in after.items() if name.startswith("outside")} == {
            name: what for name, what in before.items() if name.startswith("outside")
        }


CHANGES: dict[str, Callable[[Root], object]] = {
    "write": lambda root: root.write("scripts/new", b"", Meta(0o644, os.geteuid(), os.getegid())),
    "link": lambda root: root.link("scripts/new", "there"),
    "remove": lambda root: root.remove("scripts/old"),
    "make_folder": lambda root: root.make_folder("scripts/new"),
    "remove_tree": lambda root: root.remove_tree("scripts/old"),
    "read": lambda root: root.read("scripts/old"),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_link_that_appears_after_the_look_is_not_followed_either(
    bundle: Path, tmp_path: Path, change: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "old").write_text("secret")
    real = Root.real

    def swapping(root: Root, path: str) -> str:
        resolved = real(root, path)
        if path.startswith("scripts") and not (bundle / "scripts").is_symlink():
            os.rename(bundle / "scripts", bundle / "aside")
            (bundle / "scripts").symlink_to(outside)
        return resolved

    monkeypatch.setattr(Root, "real", swapping)
    with Root(str(bundle)) as root:
        try:
            result = CHANGES[change](root)
        except (OSError, BundleError):
            result = None
    assert (bundle / "scripts").is_symlink()
    assert result is None
    assert [(path.name, path.read_text()) for path in outside.iterdir()] == [("old", "secret")]


def test_links_that_stay_inside_the_root_are_followed(bundle: Path) -> None:
    (bundle / "share").mkdir()
    (bundle / "scripts").rename(bundle / "share/scripts")
    (bundle / "scripts").symlink_to("share/scripts")
    os.rename(bundle / "scripts/runcvm-ctr-exec", bundle / "scripts/exec-v2")
    (bundle / "scripts/runcvm-ctr-exec").symlink_to("exec-v2")
    before = snapshot(bundle)
    installed(bundle)
    assert "-J" in (bundle / "share/scripts/exec-v2").read_text()
    assert (bundle / "scripts/runcvm-ctr-exec").is_symlink()
    assert launched(bundle, "--version").startswith("runcvm-vsock-connect ")
    assert runcvm("uninstall", bundle).returncode == 0
    assert snapshot(bundle) == before
