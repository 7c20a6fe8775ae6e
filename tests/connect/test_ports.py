"""The guest's port: which numbers are one, and what is said of the others."""

from pathlib import Path

import pytest

from support import command, run, started
from support.sentences import outcome, sentence, wrong_usage
from support.sockets import listening, take


@pytest.mark.parametrize("port", ["", " ", "ssh", "5003x", "0x10", "5e3", "1_000", "+5", " 5", "5.0", "4294967296"])
def test_an_invalid_port_is_reported(port: str, tmp_path: Path) -> None:
    wrong_usage(run(str(tmp_path / "v.sock"), port), f"invalid guest port {port!r}", "0 to 4294967295")


@pytest.mark.parametrize("port", ["\uff19", "\u0663", "\xb2"])
def test_digits_that_are_not_ascii_are_no_port(port: str, tmp_path: Path) -> None:
    wrong_usage(run(str(tmp_path / "v.sock"), port), "invalid guest port", "0 to 4294967295")


def test_a_port_of_many_digits_is_refused_at_once(tmp_path: Path) -> None:
    wrong_usage(run(str(tmp_path / "v.sock"), "9" * 100_000), "invalid guest port", "0 to 4294967295")


@pytest.mark.parametrize("arguments", [["-1"], ["--", "-1"]], ids=" ".join)
def test_a_negative_port_is_no_port_rather_than_an_option(arguments: list[str], tmp_path: Path) -> None:
    wrong_usage(run(str(tmp_path / "v.sock"), *arguments), "invalid guest port '-1'", "0 to 4294967295")


@pytest.mark.parametrize(("port", "line"), [("0", b"0"), ("4294967295", b"4294967295"), ("05003", b"5003")])
def test_the_first_and_the_last_port_are_asked_for(port: str, line: bytes, tmp_path: Path) -> None:
    path = tmp_path / "v.sock"
    with listening(path) as sock, started(command(str(path), port)) as child:
        with take(sock) as connection:
            assert connection.recv(100) == b"CONNECT " + line + b"\n"
        sentence(outcome(child), f"guest port {line.decode()} refused")
