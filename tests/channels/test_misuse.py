"""What can never work is said at once, in the words for it, and leaves nothing open."""

import asyncio
import os
import re
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest

import fastvsock
from fastvsock import engines
from fastvsock.channels import client
from support import HANG, descriptors
from support.channels import Guest, umbrella

NOWHERE = "/nowhere/v.sock"  # an engine is looked for before a connection is made
Way = Callable[[str, str], object]
WAYS: dict[str, Way] = {
    "run": lambda uds, engine: fastvsock.Guest(uds, engine=engine).run(["true"]),
    "popen": lambda uds, engine: fastvsock.Guest(uds, engine=engine).popen(["true"]),
    "dial": lambda uds, engine: fastvsock.Guest(uds, engine=engine).dial("/v.sock"),
    "asyncio": lambda uds, engine: asyncio.run(fastvsock.AsyncGuest(uds, engine=engine).run(["true"])),
}


@pytest.fixture(params=WAYS)
def way(request: pytest.FixtureRequest) -> Way:
    """Each way that opens a channel."""
    return WAYS[request.param]


def test_an_unknown_engine_is_named(way: Way) -> None:
    with pytest.raises(fastvsock.EngineError, match=r"^unknown engine 'bogus': use auto, splice or copy$"):
        way(NOWHERE, "bogus")


def test_an_engine_that_was_not_built_is_named(way: Way, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(engines, "_splice", raising=False)
    monkeypatch.setitem(sys.modules, "fastvsock.engines._splice", None)
    with pytest.raises(fastvsock.EngineError, match=r"^the splice engine is not installed \(.*: install a wheel"):
        way(NOWHERE, "splice")


@pytest.mark.parametrize("command", [["exec", NOWHERE, "true"], ["forward", NOWHERE, "0:7"]])
def test_commands_name_an_unknown_engine_of_the_environment(command: list[str]) -> None:
    env = os.environ | {"FASTVSOCK_ENGINE": "bogus"}
    done = subprocess.run(umbrella(*command), env=env, capture_output=True, text=True, timeout=HANG, check=False)
    assert "unknown engine 'bogus' (from FASTVSOCK_ENGINE): use auto, splice or copy\n" in done.stderr


def test_a_channel_that_cannot_be_made_leaves_nothing_open(
    guest: Guest, way: Way, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise MemoryError

    monkeypatch.setattr(client, "Exchange", fail)
    before = descriptors(os.getpid())
    with pytest.raises(MemoryError):
        way(guest.uds, "auto")
    assert descriptors(os.getpid()) == before


@pytest.mark.parametrize("address", [80, None, b"/v.sock", ("127.0.0.1",), ("127.0.0.1", "80"), (80, "127.0.0.1")])
def test_what_is_no_address_in_the_guest_is_named(address: Any) -> None:
    words = rf"^invalid address {re.escape(repr(address))}: expected \(host, port\), or the path of a Unix socket"
    with pytest.raises(TypeError, match=words):
        fastvsock.Guest(NOWHERE).dial(address)
    with pytest.raises(TypeError, match=words):
        asyncio.run(fastvsock.AsyncGuest(NOWHERE).dial(address))
