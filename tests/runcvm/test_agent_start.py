"""`fastvsock runcvm install` and the scripts that start socat in the guest: edited, restored, or left and reported."""

from pathlib import Path

import pytest

from fastvsock.runcvm import guest_init
from fastvsock.runcvm.binary import PROGRAM
from support.bundles import INITS, SHELL_SCRIPTS, put, runcvm, snapshot
from support.installing import JOURNALS, install_now, small

INIT = "scripts/docker/firecracker-init.sh"
NO_START = "starts socat on a vsock port of the guest"
EDITED = "/.runcvm/guest/bin/fastvsock agent --forward 22="


def put_init(bundle: Path, text: str, path: str = INIT) -> None:
    """Have the bundle start socat in its guests by this script."""
    (bundle / path).parent.mkdir(exist_ok=True)
    put(bundle / path, text, 0o640)


def shape(name: str) -> str:
    """One of the known scripts."""
    return (SHELL_SCRIPTS / f"init/{name}.sh").read_text()


@pytest.mark.parametrize("name", INITS)
def test_each_known_script_is_edited_with_its_mode_kept_and_comes_back_byte_for_byte(bundle: Path, name: str) -> None:
    put_init(bundle, shape(name))
    before = snapshot(bundle)
    plan = install_now(bundle, small())
    assert not plan.undone
    assert f"+++ b/{INIT}\n" in plan.show()
    assert EDITED in (bundle / INIT).read_text()
    assert (bundle / INIT).stat().st_mode & 0o7777 == 0o640
    assert not install_now(bundle, small())
    assert runcvm("uninstall", bundle).returncode == 0
    assert snapshot(bundle) == before


def test_every_script_that_starts_socat_is_edited_wherever_it_lies(bundle: Path) -> None:
    put_init(bundle, shape("document"))
    put_init(bundle, shape("script"), "scripts/vm-init")
    install_now(bundle, small())
    assert all(EDITED in (bundle / path).read_text() for path in (INIT, "scripts/vm-init"))


def test_one_of_unknown_shape_stays_and_is_reported_and_the_rest_is_installed(bundle: Path) -> None:
    odd = "#!/bin/sh\nsocat VSOCK-LISTEN:22,fork EXEC:/bin/sh &\n"
    put_init(bundle, odd)
    plan = install_now(bundle, small())
    assert (bundle / INIT).read_text() == odd
    assert [line.partition(":")[0] for line in plan.undone] == [f"{INIT} is left alone"]
    assert "by hand: in place of socat start /.runcvm/guest/bin/fastvsock agent --forward 22=" in plan.undone[0]
    assert (bundle / PROGRAM).exists()


def test_a_bundle_that_starts_no_socat_in_its_guests_is_reported(bundle: Path) -> None:
    plan = install_now(bundle, small())
    assert any(NO_START in note for note in plan.notes)
    assert not plan.undone


@pytest.mark.parametrize("name", INITS)
def test_an_edit_that_the_shell_could_not_read_is_not_made(
    bundle: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    put_init(bundle, shape(name))
    broken = shape(name).replace("&\n", "& ;;\n", 1)
    monkeypatch.setattr(guest_init, "start_agent", lambda text: broken)
    plan = install_now(bundle, small())
    assert plan.undone[0].startswith(f"{INIT} is left alone: bash -n fails on the edited script (")
    assert (bundle / INIT).read_text() == shape(name)


def test_the_package_leaves_the_guest_as_it_is(bundle: Path) -> None:
    put_init(bundle, shape("document"))
    assert runcvm("install", bundle).returncode == 0
    assert (bundle / INIT).read_text() == shape("document")


def test_the_package_in_place_of_the_binary_takes_the_edit_back(bundle: Path) -> None:
    put_init(bundle, shape("document"))
    install_now(bundle, small())
    assert runcvm("install", bundle).returncode == 0
    assert (bundle / INIT).read_text() == shape("document")


def test_an_upgrade_of_runcvm_is_edited_again_and_its_file_is_the_new_original(bundle: Path) -> None:
    put_init(bundle, shape("document"))
    install_now(bundle, small())
    put_init(bundle, newer := shape("document").replace("no socat", "no socat here"))
    install_now(bundle, small())
    assert EDITED in (bundle / INIT).read_text()
    assert runcvm("uninstall", bundle).returncode == 0
    assert (bundle / INIT).read_text() == newer


def test_an_edited_script_never_becomes_an_original_when_the_journals_are_lost(bundle: Path) -> None:
    put_init(bundle, shape("document"))
    install_now(bundle, small())
    for path in JOURNALS:
        (bundle / path).unlink()
    plan = install_now(bundle, small())
    assert any(f"{INIT} was installed by fastvsock and its original is lost" in note for note in plan.notes)
    assert EDITED in (bundle / INIT).read_text()
    assert INIT in runcvm("uninstall", bundle).stderr
