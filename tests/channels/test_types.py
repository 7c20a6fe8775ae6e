"""What a type checker knows of `fastvsock.Guest` is what comes: str or bytes, as with `subprocess`."""

import asyncio
from subprocess import PIPE, CompletedProcess
from typing import Any, assert_type

import fastvsock
from fastvsock.channels.guest import GuestProcess
from support.channels import Guest


def test_what_run_returns_is_known_and_true(over_there: fastvsock.Guest) -> None:
    assert assert_type(over_there.run(["echo"], capture_output=True), CompletedProcess[bytes]).stdout == b"\n"
    assert assert_type(over_there.run(["cat"], input=b"a", stdout=PIPE), CompletedProcess[bytes]).stdout == b"a"
    for done in (
        assert_type(over_there.run(["cat"], input="a", text=True, stdout=PIPE), CompletedProcess[str]),
        assert_type(over_there.run(["cat"], input="a", encoding="ascii", stdout=PIPE), CompletedProcess[str]),
        assert_type(over_there.run(["cat"], input="a", errors="strict", stdout=PIPE), CompletedProcess[str]),
    ):
        assert done.stdout == "a"
    either = bool(over_there.info())
    assert assert_type(over_there.run(["true"], text=either, check=True), CompletedProcess[Any]).returncode == 0


def test_what_popen_gives_is_known_and_true(over_there: fastvsock.Guest) -> None:
    with assert_type(over_there.popen(["echo"], stdout=PIPE), GuestProcess[bytes]) as process:
        assert process.stdout
        assert assert_type(process.stdout.read(), bytes) == b"\n"
    with assert_type(over_there.popen(["echo"], stdout=PIPE, text=True), GuestProcess[str]) as lines:
        assert lines.stdout
        assert assert_type(lines.stdout.readline(), str) == "\n"


def test_what_asyncio_awaits_is_known_and_true(guest: Guest, engine: str) -> None:
    there = fastvsock.AsyncGuest(guest.uds, engine=engine)

    async def run() -> None:
        assert assert_type(await there.run(["echo"], stdout=PIPE), CompletedProcess[bytes]).stdout == b"\n"
        assert assert_type(await there.run(["echo"], stdout=PIPE, text=True), CompletedProcess[str]).stdout == "\n"

    asyncio.run(run())


def test_a_guest_and_its_process_show_what_they_are(over_there: fastvsock.Guest) -> None:
    guest = fastvsock.Guest("/run/v.sock", wait=30.0)
    assert repr(guest) == "Guest('/run/v.sock', port=721, timeout=10.0, wait=30.0, engine=None)"
    assert repr(eval(repr(guest), {"Guest": fastvsock.Guest})) == repr(guest)
    with over_there.popen(["cat"], stdin=PIPE) as process:
        assert repr(process) == "<GuestProcess: returncode: None args: ['cat']>"
    assert repr(process) == "<GuestProcess: returncode: 0 args: ['cat']>"
