"""The help of the umbrella command, and of each command in it."""

import pytest

from fastvsock import cli
from support.umbrella import run


def test_the_help_names_every_command_option_and_variable() -> None:
    done = run("--help")
    assert (done.returncode, done.stderr) == (0, b"")
    for word in (*cli.COMMANDS, "--help", "--version", "help [COMMAND]", "FASTVSOCK_DEBUG", "FASTVSOCK_ENGINE"):
        assert word in done.stdout.decode()
    assert max(map(len, done.stdout.decode().splitlines())) < 100


@pytest.mark.parametrize("name", cli.COMMANDS)
def test_help_and_a_command_is_that_commands_help(name: str) -> None:
    asked, own = run("help", name), run(name, "--help")
    assert (asked.returncode, asked.stdout, asked.stderr) == (0, own.stdout, b"")
    assert asked.stdout.startswith(f"usage: fastvsock {name} ".encode())


def test_help_alone_is_the_help() -> None:
    assert run("help").stdout == run("-h").stdout == run("--help").stdout


@pytest.mark.parametrize("arguments", [["teleport"], ["help", "teleport"], ["help", "--fast"]], ids=" ".join)
def test_a_command_that_is_none_is_told_with_those_that_are(arguments: list[str]) -> None:
    done = run(*arguments)
    assert (done.returncode, done.stdout) == (2, b"")
    assert done.stderr.startswith(f"fastvsock: unknown command {arguments[-1]!r}\nusage: ".encode())


@pytest.mark.parametrize(
    ("name", "words"),
    [("proxy", {"--linger", "the end of COMMAND"}), ("listen", {"--linger"}), ("forward", set())],
)
def test_the_services_explain_only_what_they_have(name: str, words: set[str]) -> None:
    said = " ".join(run(name, "--help").stdout.decode().split())
    assert {word for word in ("--linger", "the end of COMMAND") if word in said} == words


@pytest.mark.parametrize("name", ["agent", "emulate"])
def test_what_the_agent_is_for_is_named_whole(name: str) -> None:
    said = " ".join(run(name, "--help").stdout.decode().replace("`", "").split())
    assert "exec, cp and forward" in said
