"""--raw and --ignore-sigint: the terminal's mode, restored whatever ends the program, and Ctrl-C left to others."""

import os
import pty
import signal
import termios
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest

from support import HANG, Child, Listener, command, connecting, started
from support.faults import complaint, idle, say_hello
from support.guests import receive

PORT = 5003


def is_raw(fd: int) -> bool:
    lflag = termios.tcgetattr(fd)[3]
    assert isinstance(lflag, int)
    return not lflag & (termios.ICANON | termios.ECHO | termios.ISIG)


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + HANG
    while not condition():
        assert time.monotonic() < deadline, "it never happened"
        time.sleep(0.01)


@contextmanager
def terminal() -> Iterator[tuple[int, int]]:
    """A pseudo-terminal: the side of the person, and the side of the program."""
    person, program = pty.openpty()
    try:
        yield person, program
    finally:
        os.close(person)
        os.close(program)


@contextmanager
def raw(listener: Listener, program: int, engine: str, *options: str) -> Iterator[Child]:
    words = command("--raw", *options, listener.uds, str(PORT), engine=engine)
    with started(words, stdin=program) as child:
        yield child


def test_raw_passes_every_key_at_once_and_the_mode_comes_back(listener: Listener, engine: str) -> None:
    with terminal() as (person, program):
        before = termios.tcgetattr(program)
        with raw(listener, program, engine) as child, listener.accept() as far:
            until(lambda: is_raw(program))
            os.write(person, b"\x03\x1a\x04\r")
            assert receive(far, 4) == b"\x03\x1a\x04\r"
            far.close()
            assert complaint(child) == (0, [])
            assert termios.tcgetattr(program) == before


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT])
def test_the_mode_comes_back_after_a_signal(listener: Listener, engine: str, number: signal.Signals) -> None:
    with terminal() as (_, program), raw(listener, program, engine) as child, listener.accept():
        until(lambda: is_raw(program))
        child.send_signal(number)
        assert complaint(child) == (128 + number, [])
        assert not is_raw(program)


def test_the_mode_comes_back_when_the_program_is_killed(listener: Listener, engine: str) -> None:
    with terminal() as (_, program):
        before = termios.tcgetattr(program)
        with raw(listener, program, engine) as child, listener.accept():
            until(lambda: is_raw(program))
            child.kill()
            until(lambda: not is_raw(program))
            assert termios.tcgetattr(program) == before


def test_the_mode_comes_back_after_an_error(listener: Listener, engine: str) -> None:
    with terminal() as (_, program), raw(listener, program, engine, "--idle-timeout", "0.5") as child:
        with listener.accept():
            status, _ = complaint(child)
        assert status == 1
        assert not is_raw(program)


def test_a_stopped_program_leaves_the_terminal_as_it_was_until_it_goes_on(listener: Listener, engine: str) -> None:
    with terminal() as (_, program), raw(listener, program, engine) as child:
        with listener.accept():
            until(lambda: is_raw(program))
            child.send_signal(signal.SIGTSTP)
            until(lambda: not is_raw(program))
            child.send_signal(signal.SIGCONT)
            until(lambda: is_raw(program))
        assert complaint(child) == (0, [])
        assert not is_raw(program)


def test_raw_without_a_terminal_changes_nothing(listener: Listener, engine: str) -> None:
    with connecting(listener.uds, PORT, "--raw", engine=engine) as child:
        with idle(listener, child):
            pass
        assert complaint(child) == (0, [])


def test_ignore_sigint_leaves_ctrl_c_to_others(listener: Listener, engine: str) -> None:
    with connecting(listener.uds, PORT, "--ignore-sigint", engine=engine) as child:
        with idle(listener, child) as far:
            child.send_signal(signal.SIGINT)
            say_hello(child, far)
        assert complaint(child) == (0, [])
