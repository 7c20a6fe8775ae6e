"""The exec script that the binary leaves, with an agent in the 'guest': what RunCVM's runcvm-vm-exec does is kept."""

import os
import subprocess
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from support import HANG
from support.ways import RUNTIME, Channels

OF_THE_GUEST = "FASTVSOCK_TEST_OF_THE_GUEST"
Execute = Callable[..., subprocess.CompletedProcess[bytes]]


@pytest.fixture(scope="module")
def execute(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Execute]:
    """Runs a command as the CRI does: user and groups, directory, the container's environment, the words."""
    way = Channels()
    if reason := way.missing():
        pytest.skip(reason)
    with ExitStack() as stack:
        stack.enter_context(pytest.MonkeyPatch.context()).setenv(OF_THE_GUEST, "1")
        execution = stack.enter_context(way.ready(tmp_path_factory.mktemp("guest")))
        del execution.environment[OF_THE_GUEST]

        def run(user: str, directory: str, *words: str, **variables: str) -> subprocess.CompletedProcess[bytes]:
            command = [*execution.words[: -len(RUNTIME)], user, directory, "1", "false", *words]
            environment = execution.environment | variables
            return subprocess.run(command, env=environment, capture_output=True, timeout=HANG, check=False)

        yield run


@pytest.mark.parametrize(
    ("directory", "why"), [("/no/such folder", "No such file or directory"), ("/etc/passwd", "Not a directory")]
)
def test_a_directory_that_cannot_be_entered_is_126_and_a_sentence_and_nothing_runs(
    execute: Execute, tmp_path: Path, directory: str, why: str
) -> None:
    done = execute("0:0:", directory, "touch", str(tmp_path / "ran"))
    assert (done.returncode, done.stdout) == (126, b"")
    assert done.stderr.decode() == f"fastvsock: cannot use the guest's directory {directory}: {why}\n"
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    ("user", "ids"),
    [("0:0:", b"0 0 0"), ("1000:1001:7,8", b"1000 1001 1001 7 8"), ("65534:65534:", b"65534 65534 65534")],
)
def test_the_command_has_its_user_groups_and_directory(execute: Execute, user: str, ids: bytes) -> None:
    done = execute(user, "/usr", "sh", "-c", "echo $(id -u) $(id -g) $(id -G); pwd")
    assert done.returncode == 0, done.stderr
    assert done.stdout == ids + b"\n/usr\n"


def test_the_command_has_the_containers_environment_as_bytes_and_nothing_of_the_guests(execute: Execute) -> None:
    done = execute("0:0:", "/", "env", "-0", ODD="Ä\n' \"\\")
    found = dict(pair.split(b"=", 1) for pair in done.stdout.split(b"\0")[:-1])
    assert found[b"ODD"] == "Ä\n' \"\\".encode()
    assert found[b"PATH"].partition(b":")[0].endswith(b"/bundle/usr/sbin")
    assert not {b"PWD", b"SHLVL", b"_", b"RUNCVM_GUEST", OF_THE_GUEST.encode()} & {*found}


@pytest.mark.parametrize(
    "words", [["Ä.txt"], ["… .txt", "two\nlines", "", 'it\'s "$HOME"'], [os.fsdecode(b"\x80\xff")]]
)
def test_words_of_any_bytes_arrive_as_they_are(execute: Execute, words: list[str]) -> None:
    done = execute("0:0:", "/", "printf", "%s\\0", *words)
    assert list(map(os.fsdecode, done.stdout.split(b"\0")[:-1])) == words


@pytest.mark.parametrize(("words", "status"), [(["/no/such/program"], 127), (["/etc/passwd"], 126), (["false"], 1)])
def test_a_command_that_does_not_run_has_the_status_that_a_shell_gives(
    execute: Execute, words: list[str], status: int
) -> None:
    assert execute("0:0:", "/", *words).returncode == status
