"""The bundle's tar: linked to its busybox where it has one, and only there."""

import os
from pathlib import Path

import pytest

from support.bundles import exec_script, put, runcvm, snapshot
from support.installing import installed


@pytest.mark.parametrize("busybox", ["none", "without tar", "for another machine, with tar"])
def test_tar_is_linked_only_to_a_busybox_that_has_it(bundle: Path, busybox: str) -> None:
    program = bundle / "bin/busybox"
    data = program.read_bytes()
    program.unlink()
    if busybox == "without tar":
        put(program, "", 0o755)
        program.write_bytes(data.replace(b"\0tar\0", b"\0tzr\0"))
    elif busybox != "none":
        names = b"\0".join(sorted([b"ash", b"sh", b"tail", b"tar", *(b"a%02d" % i for i in range(70))]))
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


def test_a_tar_that_leads_nowhere_and_cannot_be_replaced_is_reported(bundle: Path) -> None:
    (bundle / "bin/tar").symlink_to("nowhere")
    (bundle / "bin/busybox").unlink()
    assert "bin/tar is not made: bin/busybox is not there" in installed(bundle, code=1).stderr
    assert os.readlink(bundle / "bin/tar") == "nowhere"


def test_a_tar_that_leads_out_of_the_bundle_is_left_alone_and_reported(bundle: Path) -> None:
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


def test_a_tar_that_is_there_is_left_alone(bundle: Path) -> None:
    put(bundle / "usr/bin/tar", "#!/bin/sh\n", 0o755)
    installed(bundle)
    assert not os.path.lexists(bundle / "bin/tar")
