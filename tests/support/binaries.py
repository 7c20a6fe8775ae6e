"""Where the static binary of this source can be built within seconds; elsewhere its tests are skipped."""

import os

import pytest

from wheels import places
from wheels.static import build, cpython


def machine() -> str:
    """The machine that runs the tests, where its CPython was built: that takes minutes, and no test starts it."""
    machine = os.uname().machine
    if machine not in build.MACHINES or not cpython.built(machine) or not cpython.built(cpython.NATIVE):
        pytest.skip("by design: the binary is tested where its CPython has been built (make binaries)")
    return machine


def require(kind: str, machine: str) -> None:
    """Skip the test where a binary of that kind cannot be built."""
    if kind == "image" and not places.qemu_here(machine):
        pytest.skip("by design: an image is made where qemu-user has been unpacked (make binaries)")
