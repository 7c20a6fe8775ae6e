"""Every way to run the installed programs."""

import shutil
import sys
from pathlib import Path

import pytest

from support import Listener
from support.packages import SCRIPTS, relayed


@pytest.mark.parametrize(
    "command",
    [
        [SCRIPTS / "runcvm-vsock-connect"],
        [SCRIPTS / "fastvsock", "connect"],
        [sys.executable, SCRIPTS / "runcvm-vsock-connect"],
        [sys.executable, "-m", "fastvsock.runcvm_vsock_connect"],
        [sys.executable, "-m", "fastvsock", "connect"],
    ],
    ids=lambda command: " ".join(Path(word).name for word in command),
)
def test_each_way_to_run_it_works(command: list[str | Path], listener: Listener) -> None:
    assert relayed(listener, command, b"down") == (0, b"down", b"")


@pytest.mark.parametrize("direct", [True, False])
def test_a_copy_of_the_launcher_works_from_any_place(direct: bool, listener: Listener, tmp_path: Path) -> None:
    place = tmp_path / "scripts"
    place.mkdir()
    launcher = shutil.copy(SCRIPTS / "runcvm-vsock-connect", place / "runcvm-vsock-connect")
    command = [launcher] if direct else [sys.executable, launcher]
    assert relayed(listener, command, b"down") == (0, b"down", b"")
