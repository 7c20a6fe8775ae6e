"""A service becomes the parent of its descendants' orphans, with the compiled engine or without."""

import ctypes
import subprocess
import sys
from types import SimpleNamespace

import pytest

from fastvsock import engines
from fastvsock.services.ownership import adopt_orphans
from support import HANG

REPORT = """
import ctypes, sys
if sys.argv[1] == "without":
    sys.modules["fastvsock.engines._splice"] = None
from fastvsock.services.ownership import adopt_orphans
adopt_orphans()
is_parent = ctypes.c_int(-1)
ctypes.CDLL(None).prctl(37, ctypes.byref(is_parent), 0, 0, 0)  # PR_GET_CHILD_SUBREAPER
print(is_parent.value)
"""


@pytest.mark.parametrize("extension", ["with", "without"])
def test_orphans_are_adopted(extension: str) -> None:
    words = [sys.executable, "-c", REPORT, extension]
    assert subprocess.run(words, capture_output=True, timeout=HANG, check=True).stdout == b"1\n"


@pytest.fixture
def no_extension(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(engines, "_splice", raising=False)
    monkeypatch.setitem(sys.modules, "fastvsock.engines._splice", None)


def test_without_ctypes_a_service_does_without(no_extension: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ctypes", None)
    adopt_orphans()


def test_with_a_libc_that_cannot_be_loaded_too(no_extension: None, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(name: object) -> None:
        raise OSError("static")

    monkeypatch.setattr(ctypes, "CDLL", refuse)
    adopt_orphans()


def test_with_a_libc_that_has_no_prctl_too(no_extension: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ctypes, "CDLL", lambda name: SimpleNamespace())
    adopt_orphans()
