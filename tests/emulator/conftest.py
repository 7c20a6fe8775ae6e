"""An emulator in this process, with the guest's ends in the hands of the test."""

from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from fastvsock.emulator import DEFAULT_SERVICES, Emulator, Exec, Service
from support.guests import GUEST, SHELL, Guest


@pytest.fixture
def guest() -> Iterator[Guest]:
    with closing(Guest()) as guest:
        yield guest


@pytest.fixture
def vmm() -> str:
    """The VMM that `emulator` stands in for; a test that concerns others parametrises this."""
    return "firecracker"


@pytest.fixture
def emulator(tmp_path: Path, guest: Guest, vmm: str) -> Iterator[Emulator]:
    services: dict[int, Service] = {**DEFAULT_SERVICES, GUEST: guest, SHELL: Exec(("sh",))}
    with Emulator(tmp_path / "v.sock", services, vmm=vmm) as emulator:
        yield emulator
