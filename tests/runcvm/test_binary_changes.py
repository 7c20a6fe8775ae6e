"""The static binary in a bundle's journal: what is refused, kept, shown, exchanged with the package, and restored."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from fastvsock.runcvm import install
from fastvsock.runcvm.payload import Package
from support.bundles import OTHER, OTHER_MACHINE, findings, make_bundle, of_another_machine, put, runcvm, snapshot
from support.installing import JOURNALS, LAUNCHER, install_now, installed, launched, program, small

PROGRAM, NAMED = "bin/fastvsock", "bin/runcvm-vsock-connect"
REFUSED = {
    "not a program": (b"#!/bin/sh\n", "it is not an ELF file"),
    "empty": (b"", "it is not an ELF file"),
    "a shared object": (program(kind=3), "it is not a static executable"),
    "of a dynamic linker": (program(segment=3), "it is not a static executable"),
    "with libraries": (program(segment=2), "it is not a static executable"),
    "cut off": (program()[:60], "it is not a static executable"),
    "another program": (program(mark=b""), "it is another program"),
}


@pytest.mark.parametrize("what", REFUSED)
def test_a_file_that_is_not_the_binary_is_refused(bundle: Path, tmp_path: Path, what: str) -> None:
    file = tmp_path / "file"
    file.write_bytes(REFUSED[what][0])
    before = snapshot(bundle)
    said = installed(bundle, "--binary", file, code=1).stderr
    assert said == (
        f"fastvsock: {file}: not a static binary of fastvsock: {REFUSED[what][1]}: "
        "pass fastvsock-VERSION-linux-MACHINE of a release\n"
    )
    assert snapshot(bundle) == before


def test_a_file_that_cannot_be_read_is_refused(bundle: Path, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    for path, why in (
        (tmp_path / "none", "cannot be read: No such file or directory"),
        (tmp_path, "cannot be read: Is a directory"),
        (tmp_path / "fifo", "expected a regular file of at most 64 MiB"),
    ):
        assert installed(bundle, "--binary", path, code=1).stderr == f"fastvsock: {path}: {why}\n"


def test_a_binary_for_another_machine_than_the_bundle_is_refused(bundle: Path, tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_bytes(program(machine=OTHER))
    before = snapshot(bundle)
    said = installed(bundle, "--binary", file, code=1).stderr
    here = os.uname().machine
    assert said == (
        f"fastvsock: {file}: it is for {OTHER_MACHINE}, and the bundle {bundle} is for {here}: "
        f"pass the binary for {here} with --binary\n"
    )
    assert snapshot(bundle) == before


def test_a_bundle_for_another_machine_gets_the_binary_for_that_one(bundle: Path, tmp_path: Path) -> None:
    of_another_machine(bundle)
    file = tmp_path / "file"
    file.write_bytes(program(machine=OTHER))
    said = installed(bundle, "--binary", file).stderr
    assert "python" not in said
    assert (bundle / PROGRAM).read_bytes() == file.read_bytes()
    assert ", of fastvsock 9.8.7. " in (bundle / LAUNCHER).read_text()
    found = findings("--root", bundle)
    assert found["binary"]["state"] == "warning"
    assert f"bin/fastvsock is there, built for {OTHER_MACHINE}" in found["binary"]["text"]
    assert not {"bundle python", "bundle engine"} & {*found}


def test_a_program_that_says_something_else_than_fastvsock_is_refused(bundle: Path, tmp_path: Path) -> None:
    source, file = tmp_path / "other.c", tmp_path / "other"
    source.write_text(
        "#include <stdio.h>\n"
        'const char mark[] = "fastvsock 9.8.7, one static executable";\n'
        "int main(void) { puts(mark); return 3; }\n"
    )
    subprocess.run(["cc", "-static", "-no-pie", "-o", file, source], check=True, timeout=60)
    before = snapshot(bundle)
    said = installed(bundle, "--binary", file, code=1).stderr
    assert said == (
        f"fastvsock: {file}: not a working fastvsock 9.8.7: with --version it prints "
        "'fastvsock 9.8.7, one static executable\\n' (exit status 3): get the file again\n"
    )
    assert snapshot(bundle) == before


def test_a_binary_that_is_not_executable_yet_is_installed_executable(
    bundle: Path, binary: Path, tmp_path: Path
) -> None:
    file = tmp_path / "downloaded"
    shutil.copy(binary, file)
    file.chmod(0o600)
    installed(bundle, "--binary", file)
    assert (bundle / PROGRAM).stat().st_mode & 0o7777 == 0o755


def test_a_wheel_and_a_binary_together_are_wrong_usage(bundle: Path) -> None:
    with pytest.raises(SystemExit) as refused:
        runcvm("install", bundle, "--wheel", "x", "--binary", "y")
    assert refused.value.code == 2


def test_a_dry_run_shows_the_same_and_changes_nothing(bundle: Path, binary: Path) -> None:
    before = snapshot(bundle)
    shown = installed(bundle, "--binary", binary, "--dry-run").stdout
    assert snapshot(bundle) == before
    assert installed(bundle, "--binary", binary).stdout == shown
    removed = runcvm("uninstall", bundle, "--dry-run").stdout.splitlines()
    assert f"-{NAMED} -> fastvsock" in removed
    assert sum(line.startswith(f"-{PROGRAM} (") for line in removed) == 1


@pytest.mark.parametrize("proxy", [[], ["--proxy"]])
def test_package_and_binary_take_each_others_place_and_leave_nothing_of_the_other(
    whole: Path, binary: Path, proxy: list[str]
) -> None:
    """But for the package, which stays for one more install, since a process may still load from it."""

    def without_package() -> dict[str, tuple[int, bytes]]:
        ours = (".fastvsock", "lib/fastvsock")
        return {path: what for path, what in snapshot(whole).items() if not path.startswith(ours)}

    original = snapshot(whole)
    installed(whole, *proxy)
    package = without_package()
    installed(whole, "--binary", binary, *proxy)
    with_binary = without_package()
    assert (whole / PROGRAM).exists()
    assert launched(whole, "--version").startswith("runcvm-vsock-connect ")
    assert "nothing to do" in installed(whole, "--binary", binary, *proxy).stderr
    installed(whole, *proxy)
    assert without_package() == package
    installed(whole, "--binary", binary, *proxy)
    assert without_package() == with_binary
    assert runcvm("uninstall", whole).returncode == 0
    assert snapshot(whole) == original


def test_a_newer_binary_replaces_the_former_one_in_one_line_of_the_diff(bundle: Path) -> None:
    original = snapshot(bundle)
    install_now(bundle, small())
    plan = install_now(bundle, small("9.9"))
    assert [change.path for change in plan.changes] == [PROGRAM, LAUNCHER]
    shown = plan.changes[0].show()
    assert shown.startswith(f"+{PROGRAM} (")
    assert shown.endswith(", in place of another)\n")
    assert shown.count("\n") == 1
    assert runcvm("uninstall", bundle).returncode == 0
    assert snapshot(bundle) == original


@pytest.mark.parametrize("theirs", ["a file", "a link", "the same binary"])
def test_what_others_had_in_its_place_is_kept_and_comes_back(bundle: Path, theirs: str) -> None:
    if theirs == "a link":
        (bundle / PROGRAM).symlink_to("elsewhere")
    elif theirs == "a file":
        put(bundle / PROGRAM, "theirs\n", 0o700)
    else:
        (bundle / PROGRAM).write_bytes(small().data)
        (bundle / PROGRAM).chmod(0o700)
    original = snapshot(bundle)
    plan = install_now(bundle, small())
    assert (bundle / PROGRAM).read_bytes() == small().data
    assert (bundle / PROGRAM).stat().st_mode & 0o7777 == 0o755
    assert any(PROGRAM in change.show() for change in plan.changes)
    assert runcvm("uninstall", bundle).returncode == 0
    assert snapshot(bundle) == original


def test_a_binary_that_was_changed_since_is_not_removed_without_force(bundle: Path) -> None:
    original = snapshot(bundle)
    install_now(bundle, small())
    put(bundle / PROGRAM, "theirs\n", 0o755)
    result = runcvm("uninstall", bundle)
    assert result.returncode == 1
    assert f"{PROGRAM} was changed since it was installed" in result.stderr
    assert runcvm("uninstall", bundle, "--force").returncode == 0
    assert snapshot(bundle) == original


def test_without_any_journal_the_package_takes_the_binarys_place(bundle: Path) -> None:
    install_now(bundle, small())
    for name in JOURNALS:
        (bundle / name).unlink()
    installed(bundle)
    assert not (bundle / PROGRAM).exists()
    assert not (bundle / NAMED).is_symlink()


def test_the_launcher_is_never_there_without_the_binary_that_it_starts(tmp_path: Path) -> None:
    """Whatever is replaced first: the order of an install and of an uninstall, change by change."""
    for work in ("install", "uninstall", "back to the package"):
        bundle = make_bundle(tmp_path / work)
        package = Package({"fastvsock/__init__.py": b'__version__ = "0.1.0"\n', "fastvsock/entry.py": b"#\n"}, "a test")
        if work != "install":
            install_now(bundle, small())
        with install.opened(str(bundle), lock=False) as root:
            plan = (
                install.plan_uninstall(root)
                if work == "uninstall"
                else install.plan_install(root, small() if work == "install" else package)
            )
        order = [change.path for change in plan.changes]
        users = [order.index(path) for path in (LAUNCHER, "scripts/runcvm-ctr-exec")]
        needed = [order.index(path) for path in (PROGRAM, NAMED)]
        assert max(needed) < min(users) if work == "install" else max(users) < min(needed)


BROKEN = {
    "no binary": (None, "bin/fastvsock is not there, and scripts/runcvm-vsock-connect starts it"),
    "another file": (b"text", "bin/fastvsock is not fastvsock's static binary, and "),
    "another machine": (program(machine=OTHER), f"bin/fastvsock is for {OTHER_MACHINE}, the bundle for "),
    "a damaged one": (program(), "bin/fastvsock does not run: "),
}


@pytest.mark.parametrize("what", BROKEN)
def test_check_finds_what_is_wrong_with_the_binary(bundle: Path, what: str) -> None:
    install_now(bundle, small())
    content, text = BROKEN[what]
    (bundle / PROGRAM).unlink()
    if content is not None:
        (bundle / PROGRAM).write_bytes(content)
        (bundle / PROGRAM).chmod(0o755)
    found = findings("--root", bundle, code=1)["binary"]
    assert found["state"] == "failed"
    assert text in found["text"]
    assert found["advice"] == "run: fastvsock runcvm install"


@pytest.mark.parametrize("python", ["in PATH", "nowhere"])
def test_check_reports_the_binary_and_misses_no_python(
    bundle: Path, binary: Path, python: str, no_python: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    installed(bundle, "--binary", binary)
    if python == "nowhere":
        monkeypatch.setenv("PATH", no_python["PATH"])
    found = findings("--root", bundle, code=0)
    assert found["binary"]["state"] == found["launcher"]["state"] == "ok"
    assert found["binary"]["text"].startswith("bin/fastvsock runs, and needs no Python: fastvsock ")
    assert not {"bundle python", "bundle engine"} & {*found}
    ways = "starts directly and as python3 PATH: " if python == "in PATH" else "starts directly: "
    assert found["launcher"]["text"].startswith(ways)
