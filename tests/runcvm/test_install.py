"""`fastvsock runcvm install` and `uninstall`, on a bundle whose programs really run through its own lib/ld."""

import errno
import json
import os
import shutil
import socket
import subprocess
import sys
import zipfile
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path

import pytest

import fastvsock
from fastvsock.runcvm import bundle as bundle_module
from fastvsock.runcvm import install, package
from fastvsock.runcvm.bundle import Ran
from fastvsock.runcvm.root import BundleError, Meta, Root
from support import HANG, SOURCE, SOURCE_SIZE, Endpoint, pattern
from support.bundles import (
    ARGUMENTS,
    OLD_TRANSPORT,
    OTHER_MACHINE,
    exec_script,
    make_bundle,
    of_another_machine,
    put,
    runcvm,
    snapshot,
)

LAUNCHER = "scripts/runcvm-vsock-connect"
SCRIPTS = [LAUNCHER, "scripts/runcvm-ctr-exec", "scripts/runcvm-ctr-defaults"]
PACKAGE = Path(fastvsock.__file__).parent


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    """A bundle as RunCVM ships it, but without a Python: the one in PATH serves."""
    return make_bundle(tmp_path / "opt/runcvm")


@pytest.fixture
def whole(tmp_path: Path) -> Path:
    """A bundle with a Python of its own."""
    return make_bundle(tmp_path / "opt/runcvm", python=True)


@pytest.fixture
def wheel(tmp_path: Path) -> Path:
    """A wheel without an engine."""
    return make_wheel(tmp_path / "fastvsock-0.1.0-py3-none-any.whl")


def make_wheel(path: Path, **more: bytes) -> Path:
    """A wheel of this package's Python files, and the engines files named in `more`."""
    with zipfile.ZipFile(path, "w") as wheel:
        for file in PACKAGE.rglob("*.py"):
            wheel.write(file, f"fastvsock/{file.relative_to(PACKAGE)}")
        for name, data in more.items():
            wheel.writestr(f"fastvsock/engines/{name}.abi3.so", data)
        wheel.writestr("fastvsock-0.1.0.dist-info/METADATA", "Name: fastvsock\n")
    return path


def elf(machine: int, libc: bytes) -> bytes:
    """What stands for a shared object: its header's machine, and a name of the C library that it needs."""
    return b"\x7fELF\x02\x01" + bytes(12) + machine.to_bytes(2, "little") + bytes(44) + b"\0" + libc + b"\0"


def installed(bundle: Path, *arguments: str | Path, code: int = 0) -> subprocess.CompletedProcess[str]:
    """Install, expecting that exit status."""
    result = runcvm("install", bundle, *arguments)
    assert result.returncode == code, result.stderr
    return result


def test_a_bundle_is_installed_into_and_a_second_install_finds_nothing_to_do(whole: Path) -> None:
    first = installed(whole)
    assert os.readlink(whole / "bin/tar") == "busybox"
    assert "-      debugfs\n+      debugfs tar\n" in first.stdout
    assert "--- a/scripts/runcvm-ctr-exec\n+++ b/scripts/runcvm-ctr-exec\n@@ " in first.stdout
    assert not [path for path in whole.rglob("*") if path.name.endswith("fastvsock-new")]
    before = snapshot(whole)
    second = installed(whole)
    assert second.stdout == ""
    assert "nothing to do" in second.stderr
    assert snapshot(whole) == before


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


def test_a_new_version_of_runcvm_is_edited_anew_and_becomes_the_original(bundle: Path) -> None:
    installed(bundle)
    put(bundle / "scripts/runcvm-ctr-exec", exec_script("continued"), 0o755)
    put(bundle / LAUNCHER, OLD_TRANSPORT + "# newer\n", 0o755)
    newer = {name: (bundle / name).read_bytes() for name in SCRIPTS[:2]}
    installed(bundle)
    assert "-J" in (bundle / "scripts/runcvm-ctr-exec").read_text()
    assert runcvm("uninstall", bundle).returncode == 0
    assert {name: (bundle / name).read_bytes() for name in newer} == newer


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


def test_a_damaged_backup_is_told_and_nothing_is_restored_from_it(bundle: Path) -> None:
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
def test_a_journal_that_cannot_be_understood_stops_everything(bundle: Path, journal: str) -> None:
    installed(bundle)
    put(bundle / ".fastvsock/manifest.json", journal, 0o644)
    before = snapshot(bundle)
    for command in ("install", "uninstall"):
        result = runcvm(command, bundle)
        assert result.returncode == 1
        assert "cannot be understood" in result.stderr
        assert "originals are in .fastvsock/backup" in result.stderr
    assert snapshot(bundle) == before


JOURNALS = (".fastvsock/manifest.json", ".fastvsock/backup/manifest.json")


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
        assert f"{LAUNCHER} is fastvsock's, but its original is not known any more" in result.stderr
        where = "in .fastvsock/backup" if lost == "both journals" else "RunCVM's image"
        assert where in result.stderr
        assert snapshot(bundle) == before
    assert launched(bundle, "--version").startswith("runcvm-vsock-connect ")


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
        assert f"{LAUNCHER} is fastvsock's" in refused.stderr
        assert launched(bundle, "--version").startswith("runcvm-vsock-connect ")
    kept = snapshot(bundle / ".fastvsock/backup")
    assert backups.items() - kept.items() == {("manifest.json", backups["manifest.json"])}
    for name, data in originals.items():  # as their owner would, from RunCVM's image
        (bundle / name).write_bytes(data)
    assert runcvm("uninstall", bundle).returncode == 0
    assert {name: (bundle / name).read_bytes() for name in SCRIPTS} == originals
    assert not (bundle / "lib/fastvsock").exists()


def test_a_launcher_that_was_edited_is_replaced_and_is_no_original(bundle: Path) -> None:
    before = snapshot(bundle)
    installed(bundle)
    put(bundle / LAUNCHER, (bundle / LAUNCHER).read_text() + "# mine\n", 0o755)
    installed(bundle)
    assert "# mine" not in (bundle / LAUNCHER).read_text()
    assert runcvm("uninstall", bundle).returncode == 0
    assert snapshot(bundle) == before


def test_what_others_put_beside_our_files_is_left_and_told(bundle: Path) -> None:
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
    assert "proxy /run/firecracker.vsock" in script.read_text()
    assert (bundle / "scripts/fastvsock").exists()


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


def test_what_cannot_be_done_is_told_and_the_rest_is_done(bundle: Path) -> None:
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


@pytest.mark.parametrize("busybox", ["none", "without tar", "for another machine, with tar"])
def test_tar_is_linked_only_to_a_busybox_that_has_it(bundle: Path, busybox: str) -> None:
    program = bundle / "bin/busybox"
    data = program.read_bytes()
    program.unlink()
    if busybox == "without tar":
        put(program, "", 0o755)
        program.write_bytes(data.replace(b"\0tar\0", b"\0tzr\0"))
    elif busybox != "none":
        names = b"\0".join(sorted([b"ash", b"tar", *(b"a%02d" % i for i in range(70))]))
        program.write_bytes(b"\x7fELF" + bytes(40) + names + bytes(40))
        program.chmod(0o755)
    result = installed(bundle, code=0 if "with tar" in busybox else 1)
    expected = {
        "none": "bin/tar is not made: bin/busybox is not there",
        "without tar": "bin/tar is not made: the bundle's busybox has no applet tar",
    }
    assert expected.get(busybox, "; its applets were read from the file") in result.stderr
    assert (bundle / "bin/tar").is_symlink() == ("with tar" in busybox)


@pytest.mark.parametrize("target", ["nowhere", "tar", "/opt/runcvm/bin/none"])
def test_a_tar_that_leads_nowhere_is_replaced_and_comes_back(bundle: Path, target: str) -> None:
    (bundle / "bin/tar").symlink_to(target)
    before = snapshot(bundle)
    shown = installed(bundle).stdout
    assert f"-bin/tar -> {target}\n+bin/tar -> busybox\n" in shown
    assert os.readlink(bundle / "bin/tar") == "busybox"
    assert "nothing to do" in installed(bundle).stderr
    assert runcvm("uninstall", bundle).returncode == 0
    assert snapshot(bundle) == before


def test_a_tar_that_leads_nowhere_and_cannot_be_replaced_is_told(bundle: Path) -> None:
    (bundle / "bin/tar").symlink_to("nowhere")
    (bundle / "bin/busybox").unlink()
    assert "bin/tar is not made: bin/busybox is not there" in installed(bundle, code=1).stderr
    assert os.readlink(bundle / "bin/tar") == "nowhere"


def test_a_tar_that_leads_out_of_the_bundle_is_left_alone_and_told(bundle: Path) -> None:
    (bundle / "bin/tar").symlink_to("/bin/tar")
    assert "bin/tar leads out of the bundle" in installed(bundle, code=1).stderr
    assert os.readlink(bundle / "bin/tar") == "/bin/tar"


@pytest.mark.parametrize("mount", ["/.runcvm/guest", "/opt/runcvm"])
def test_a_link_by_a_mount_point_of_the_bundle_is_one_inside(bundle: Path, mount: str) -> None:
    (bundle / "bin/tar").symlink_to(f"{mount}/bin/busybox")
    os.rename(bundle / "scripts/runcvm-ctr-exec", bundle / "scripts/exec-v2")
    (bundle / "scripts/runcvm-ctr-exec").symlink_to(f"{mount}/scripts/exec-v2")
    before = snapshot(bundle)
    installed(bundle)
    assert os.readlink(bundle / "bin/tar") == f"{mount}/bin/busybox"
    assert (bundle / "scripts/exec-v2").read_text() != exec_script("fork")
    assert runcvm("uninstall", bundle).returncode == 0
    assert snapshot(bundle) == before


def test_a_bundle_for_another_machine_keeps_its_own_python(whole: Path) -> None:
    of_another_machine(whole)
    said = installed(whole).stderr
    assert '"$root/usr/bin/python3"' in (whole / LAUNCHER).read_text()
    assert f"built for {OTHER_MACHINE}" in said
    assert "without python3" not in said
    assert "nothing to do" in installed(whole).stderr


def test_a_python_that_leads_out_of_a_bundle_for_another_machine_is_none(whole: Path) -> None:
    of_another_machine(whole)
    (whole / "usr/bin/python3").unlink()
    (whole / "usr/bin/python3").symlink_to("/usr/bin/python3")
    assert "usr/bin/python3 leads out of the bundle" in installed(whole).stderr
    assert '"$root/usr/bin/python3"' not in (whole / LAUNCHER).read_text()


def test_a_python_that_gives_no_answer_is_told_as_undone(whole: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bundle_module, "SECONDS", 0.2)
    (whole / "usr/bin/python3").unlink()
    (whole / "lib/ld").unlink()
    put(whole / "usr/bin/python3", "#!/bin/sh\nexec sleep 900\n", 0o755)
    assert "usr/bin/python3: no answer within 0.2 s" in installed(whole, code=1).stderr


def test_a_tar_that_is_there_is_left_alone(bundle: Path) -> None:
    put(bundle / "usr/bin/tar", "#!/bin/sh\n", 0o755)
    installed(bundle)
    assert not os.path.lexists(bundle / "bin/tar")


def test_an_engine_for_another_libc_or_machine_is_left_out_and_told(bundle: Path, tmp_path: Path) -> None:
    machine = int.from_bytes((bundle / "lib/ld").read_bytes()[18:20], "little")
    for number, libc, words in (
        (machine, b"libc.musl-x86_64.so.1", ("is for", "musl, the bundle is", "glibc")),
        (183 if machine == 62 else 62, b"libc.so.6", ("is for", "glibc, the bundle is", "glibc")),
        (machine, b"libc.so.6", ()),
    ):
        wheel = make_wheel(tmp_path / f"{number}{len(libc)}.whl", _splice=elf(number, libc))
        said = installed(bundle, "--wheel", wheel).stderr
        assert all(word in said for word in words)
        assert ("is left out" in said) == bool(words)
        current = json.loads((bundle / ".fastvsock/manifest.json").read_text())["site"]
        assert (bundle / current / "fastvsock/engines/_splice.abi3.so").exists() == (not words)


def test_a_musl_bundle_is_known_by_its_dynamic_linker(bundle: Path) -> None:
    (bundle / "lib/ld").unlink()
    os.rename(next((bundle / "lib").glob("ld-linux*")), bundle / "lib/ld-musl-x86_64.so.1")
    (bundle / "lib/ld").symlink_to("./ld-musl-x86_64.so.1")
    if any(package.installed().engine()):
        assert "glibc, the bundle is x86_64 musl: it is left out" in installed(bundle).stderr


@pytest.mark.parametrize("content", [b"", b"no zip", None])
def test_a_file_that_is_no_wheel_of_fastvsock_is_refused(bundle: Path, tmp_path: Path, content: bytes | None) -> None:
    file = tmp_path / "other.whl"
    if content is None:
        with zipfile.ZipFile(file, "w") as wheel:
            wheel.writestr("fastvsock/entry.py", "")
            wheel.writestr("fastvsock/../../../escaped.py", "")
    else:
        file.write_bytes(content)
    before = snapshot(bundle)
    result = installed(bundle, "--wheel", file, code=1)
    assert str(file) in result.stderr
    assert "Traceback" not in result.stderr
    assert snapshot(bundle) == before


def spoiled_wheel(path: Path, how: str) -> Path:
    """A wheel of fastvsock that has something wrong with it."""
    make_wheel(path)
    texts: dict[str, dict[str, str | bytes]] = {
        "no __init__.py": {"fastvsock/entry.py": "#"},
        "no version": {"fastvsock/entry.py": "#", "fastvsock/__init__.py": "__version__ = None"},
        "a version that is a path": {"fastvsock/entry.py": "#", "fastvsock/__init__.py": '__version__ = "../.."'},
        "a module that is no text": {"fastvsock/entry.py": "#", "fastvsock/__init__.py": b"\xff__version__"},
    }
    if how in texts:
        with zipfile.ZipFile(path, "w") as wheel:
            for name, text in texts[how].items():
                wheel.writestr(name, text)
        return path
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as wheel:
        wheel.writestr("fastvsock/entry.py", os.urandom(99).hex())
        info = wheel.infolist()[0]
    data = bytearray(path.read_bytes())
    at = info.header_offset + 30 + len(info.filename)
    if how == "a damaged member":
        data[at : at + 20] = b"\xff" * 20
    else:  # of another compression: twice, in the member's header and in the directory
        data[8:10] = data[data.rindex(b"PK\x01\x02") + 10 :][:2] = (93).to_bytes(2, "little")
        data[data.rindex(b"PK\x01\x02") + 10] = 93
    path.write_bytes(data)
    return path


SPOILED = (
    "no __init__.py",
    "no version",
    "a version that is a path",
    "a module that is no text",
    "a damaged member",
    "an unknown compression",
)


@pytest.mark.parametrize("how", SPOILED)
def test_a_wheel_that_is_damaged_or_odd_is_refused_in_a_sentence(bundle: Path, tmp_path: Path, how: str) -> None:
    wheel = spoiled_wheel(tmp_path / "odd.whl", how)
    before = snapshot(bundle)
    said = installed(bundle, "--wheel", wheel, code=1).stderr
    assert said.startswith(f"fastvsock: {wheel}: ")
    assert said.count("\n") == 1
    assert snapshot(bundle) == before


def launched(bundle: Path, *arguments: str, before: list[str] | None = None, **variables: str) -> str:
    """What the launcher prints."""
    command = [*(before or []), str(bundle / LAUNCHER), *arguments]
    environment = {"PATH": os.environ["PATH"], **variables}
    result = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=HANG, check=False)
    assert result.returncode == 0, result.stderr
    return result.stdout


@pytest.mark.parametrize("how", [[], ["python3"], ["bash"], ["sh"]])
def test_the_launcher_runs_from_the_bundle_alone_wherever_it_is_seen(
    whole: Path, tmp_path: Path, how: list[str]
) -> None:
    installed(whole)
    seen = tmp_path / "seen elsewhere/guest"
    seen.parent.mkdir()
    whole.rename(seen)
    spoiled = tmp_path / "image's own"
    (spoiled / "fastvsock").mkdir(parents=True)
    (spoiled / "fastvsock/__init__.py").write_text("raise SystemExit('the wrong package')")
    version = f"runcvm-vsock-connect {fastvsock.__version__}\n"
    assert launched(seen, "--version", before=how, PYTHONPATH=str(spoiled)) == version
    link = tmp_path / "linked"
    link.symlink_to(seen / LAUNCHER)
    command = [*how, str(link), "--version"]
    assert subprocess.run(command, capture_output=True, text=True, check=True, timeout=HANG).stdout == version


def test_the_launcher_runs_the_bundles_python_through_its_linker_and_nothing_that_is_not_needed(whole: Path) -> None:
    installed(whole)
    strace = shutil.which("strace")
    assert strace, "strace is needed for this test"
    trace = whole.parent / "trace"
    launched(whole, "--version", before=[strace, "-f", "-e", "trace=execve,openat", "-s", "999", "-o", str(trace)])
    calls = trace.read_text()
    root = f"{whole}/scripts/.."
    assert f'execve("{root}/lib/ld", ["{root}/lib/ld", "{root}/usr/bin/python3"' in calls
    ours = [line for line in calls.splitlines() if "/lib/fastvsock/" in line and "= -1" not in line and ".py" in line]
    assert ours
    assert all(".pyc" in line for line in ours), "each start compiles the package"
    assert not [line for line in calls.splitlines() if "site-packages" in line or "/argparse" in line]


def test_the_installed_transport_carries_bytes_both_ways(whole: Path, endpoint: Endpoint) -> None:
    installed(whole)
    for how in ([], ["python3"]):
        command = [*how, str(whole / LAUNCHER), "--linger", endpoint.linger, endpoint.uds, "7"]
        data = os.urandom(endpoint.size(1 << 20))
        result = subprocess.run(command, input=data, capture_output=True, timeout=HANG, check=False)
        assert (result.returncode, result.stdout) == (0, data), result.stderr


def test_a_bundle_without_python_gets_a_launcher_that_takes_the_one_in_path(bundle: Path, tmp_path: Path) -> None:
    said = installed(bundle).stderr
    assert "no python3 in the bundle: " in said
    assert "in a container without python3 3.11 or newer every exec and cp will fail: add python3" in said
    assert "BUNDELF_BINARIES" in said
    assert launched(bundle, "--version").startswith("runcvm-vsock-connect ")
    empty = tmp_path / "empty"
    empty.mkdir()
    command = ["/bin/sh", str(bundle / LAUNCHER), "--version"]
    result = subprocess.run(
        command, env={"PATH": str(empty)}, capture_output=True, text=True, check=False, timeout=HANG
    )
    assert result.returncode == 127
    assert result.stderr.startswith("fastvsock: no python3 in this PATH")


# dbclient, as far as it concerns a transport: what comes from the guest is printed, whichever way it is reached.
CLIENT = """#!/bin/bash
while [ $# -gt 1 ]; do
  case $1 in -J) transport=$2;; -p) port=$2;; esac
  shift
done
case ${transport-} in
  '') exec cat <"/dev/tcp/127.0.0.1/$port";;
  '&3') exec cat <&3;;
  *) exec sh -c "exec $transport" </dev/null;;
esac
"""


@pytest.mark.parametrize("arguments", [[], ["--proxy"]])
def test_the_installed_exec_script_reaches_the_guest_by_the_installed_transport(
    whole: Path, endpoint: Endpoint, arguments: list[str]
) -> None:
    script = exec_script("fork").replace('/run/firecracker.vsock 22"', f'{endpoint.uds} {SOURCE}"')
    put(whole / "scripts/runcvm-ctr-exec", script, 0o755)
    put(whole / "usr/bin/dbclient", CLIENT, 0o755)
    installed(whole, *arguments)
    command = ["bash", "-e", str(whole / "scripts/runcvm-ctr-exec"), *ARGUMENTS]
    environment = {**os.environ, "RUNCVM_GUEST": str(whole)}
    result = subprocess.run(
        command, env=environment, stdin=subprocess.DEVNULL, capture_output=True, timeout=HANG, check=False
    )
    assert result.stdout == pattern(SOURCE_SIZE), result.stderr


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
            assert "leads out of the bundle" in result.stderr or "no RunCVM bundle" in result.stderr
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


@pytest.mark.parametrize("kind", ["fifo", "folder", "socket"])
def test_what_is_no_file_in_a_scripts_place_is_told(bundle: Path, kind: str) -> None:
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
def test_a_root_that_is_no_bundle_is_refused(root: str) -> None:
    for command in ("install", "uninstall"):
        result = runcvm(command, Path(root) if root else Path("."))
        assert result.returncode == 1
        assert "no RunCVM bundle there" in result.stderr


def test_two_installs_at_once_do_not_mix(bundle: Path) -> None:
    with install.opened(str(bundle), lock=True):
        result = installed(bundle, code=1)
    assert "another install or uninstall is at work" in result.stderr


STEPS = ("rename", "symlink", "mkdir", "unlink", "rmdir")


def killed_at(step: int, work: Callable[[], None]) -> bool:
    """Do `work` in a child that is killed just before its `step`-th change of a folder; whether it got so far."""
    child = os.fork()
    if child == 0:
        left = step

        def counting(change: Callable[..., None]) -> Callable[..., None]:
            def counted(*arguments: object, **options: object) -> None:
                nonlocal left
                left -= 1
                if not left:
                    os._exit(9)
                change(*arguments, **options)

            return counted

        for name in STEPS:
            setattr(os, name, counting(getattr(os, name)))
        work()
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 9


SMALL = package.Package({"fastvsock/__init__.py": b'__version__ = "0.1.0"\n', "fastvsock/entry.py": b"#\n"}, "a test")
NEWER = package.Package({**SMALL.files, "fastvsock/entry.py": b"# newer\n"}, "a test")


def install_now(bundle: Path, files: package.Package, proxy: bool = False) -> None:
    """What `install` does, in this process."""
    with install.opened(str(bundle), lock=True) as root:
        install.apply(root, install.plan_install(root, files, proxy=proxy))


def uninstall_now(bundle: Path) -> None:
    """What `uninstall` does, in this process."""
    with install.opened(str(bundle), lock=True) as root:
        plan = install.plan_uninstall(root)
        assert not plan.undone
        install.undo(root, plan)


def work_of(bundle: Path) -> dict[str, object]:
    """What RunCVM uses of a bundle: all but our own folders and what a kill may have left beside a file."""
    found = snapshot(bundle)
    return {
        path: what
        for path, what in found.items()
        if not path.startswith((".fastvsock", "lib/fastvsock")) and not path.endswith("fastvsock-new")
    }


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Programs of the bundle are run once for all copies of it, and nothing waits for the disk."""
    results: dict[object, Ran] = {}
    real = bundle_module.run

    def once(command: list[str], data: bytes = b"") -> Ran:
        key = (*map(os.path.basename, command), data)
        if key not in results:
            results[key] = real(command, data)
        return results[key]

    monkeypatch.setattr(bundle_module, "run", once)
    monkeypatch.setattr(install, "run", once)
    monkeypatch.setattr(os, "fsync", lambda fd: None)


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("what", ["install", "upgrade", "uninstall"])
def test_a_kill_at_any_step_leaves_each_file_old_or_new_and_can_be_taken_up_or_undone(
    tmp_path: Path, what: str
) -> None:
    original = make_bundle(tmp_path / "original")
    (original / "bin/bash").unlink()  # one program less to start for each step
    start, goal = tmp_path / "start", tmp_path / "goal"
    for copy in (start, goal):
        shutil.copytree(original, copy, symlinks=True, copy_function=os.link)
    if what != "install":
        install_now(start, SMALL, proxy=True)
    work: dict[str, Callable[[Path], None]] = {
        "install": lambda bundle: install_now(bundle, SMALL, proxy=True),
        "upgrade": lambda bundle: install_now(bundle, NEWER),
        "uninstall": uninstall_now,
    }
    if what != "uninstall":
        install_now(goal, SMALL if what == "install" else NEWER, proxy=what == "install")
    old, new, first = work_of(start), work_of(goal), work_of(original)
    step = 0
    while True:
        step += 1
        bundle = tmp_path / f"{step}"
        shutil.copytree(start, bundle, symlinks=True, copy_function=os.link)
        killed = killed_at(step, lambda bundle=bundle: work[what](bundle))  # type: ignore[misc]
        for path, content in work_of(bundle).items():
            assert content in (old.get(path), new.get(path)), f"{path} is half done at step {step}"
        names_its_package(bundle)
        again = tmp_path / f"{step} again"
        shutil.copytree(bundle, again, symlinks=True, copy_function=os.link)
        work[what](again)
        assert work_of(again) == new
        uninstall_now(bundle)
        assert snapshot(bundle) == snapshot(original)
        assert work_of(bundle) == first
        for done in (bundle, again):
            shutil.rmtree(done)
        if not killed:
            break
    assert step > 12


def names_its_package(bundle: Path) -> None:
    """Whatever launcher is there, the package that it names is whole."""
    for line in (bundle / LAUNCHER).read_text().splitlines():
        if line.startswith("sys.path.insert"):
            site = bundle / "scripts" / line.split('"/')[1].split('"')[0]
            assert {path.name for path in (site / "fastvsock").iterdir()} == {"__init__.py", "entry.py"}


def test_the_owner_of_a_script_is_kept(bundle: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("only root can give a file away")
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
        pytest.skip("only root can lack that")
    confined = [setpriv, "--bounding-set=-chown", "--inh-caps=-chown", sys.executable, "-m", "fastvsock", "runcvm"]
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
        f"run as root with that\n"
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


def test_a_file_system_that_cannot_be_written_is_told_in_a_sentence(
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
    whole = [sys.executable, "-m", "fastvsock", "runcvm", command, "--root", str(bundle)]
    reader, writer = os.pipe()
    os.close(reader)
    with open("/dev/full", "wb") as full, open(writer, "wb") as closed:
        for stdout, words in ((full, "No space left on device"), (closed, "Broken pipe")):
            result = subprocess.run(whole, stdout=stdout, stderr=subprocess.PIPE, text=True, timeout=HANG, check=False)
            assert result.returncode == 1
            assert result.stderr == f"fastvsock: stdout: {words}: the changes cannot be shown, so none was made\n"
            assert snapshot(bundle) == before


@pytest.mark.parametrize("arguments", [["check"], ["install", "--dry-run"]])
def test_a_full_disk_behind_stdout_is_not_the_bundles_fault(bundle: Path, arguments: list[str]) -> None:
    whole = [sys.executable, "-m", "fastvsock", "runcvm", *arguments, "--root", str(bundle)]
    with open("/dev/full", "wb") as full:
        result = subprocess.run(whole, stdout=full, stderr=subprocess.PIPE, text=True, timeout=HANG, check=False)
    assert result.returncode == 1
    assert result.stderr.startswith("fastvsock: stdout: No space left on device")
    assert result.stderr.count("\n") == 1


def test_a_dry_run_whose_reader_has_seen_enough_is_no_failure(bundle: Path) -> None:
    whole = [sys.executable, "-m", "fastvsock", "runcvm", "install", "--dry-run", "--root", str(bundle)]
    reader, writer = os.pipe()
    os.close(reader)
    with open(writer, "wb") as closed:
        result = subprocess.run(whole, stdout=closed, stderr=subprocess.PIPE, text=True, timeout=HANG, check=False)
    assert (result.returncode, result.stderr) == (0, "")
