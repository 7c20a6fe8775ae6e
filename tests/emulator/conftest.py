"""An emulator in this process, with the guest's ends in the hands of the test."""

from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from fastvsock.emulator.emulator import Emulator
from fastvsock.emulator.guest import DEFAULT_SERVICES, Exec, Service
from support.guests import GUEST, SHELL, Guest


@pytest.fixture
def guest() -> Iterator[Guest]:
    with closing(Guest()) as guest:
        yield guest


@pytest.fixture
def emulator(tmp_path: Path, guest: Guest) -> Iterator[Emulator]:
    services: dict[int, Service] = {**DEFAULT_SERVICES, GUEST: guest, SHELL: Exec(("sh",))}
    with Emulator(tmp_path / "v.sock", services) as emulator:
        yield emulator
