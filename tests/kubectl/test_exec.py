"""`kubectl exec`: words, streams, exit status, and a terminal."""

import os

import pytest

from support import HANG, started
from support.apiserver import NAME
from support.kubectl import Pod
from support.ways import WAYS

WORDS = ["a  b", "", "$HOME", "`id`", "'", '"', "\\", "*", "{port}", "-x", "tab\there"]


def test_stdout_and_stderr_come_apart(pod: Pod) -> None:
    done = pod.execute("sh", "-c", "echo out; echo err >&2")
    assert (done.returncode, done.stdout) == (0, b"out\n")
    assert done.stderr.endswith(b"err\n")  # dbclient has a line of its own before it


@pytest.mark.parametrize("status", [0, 1, 7, 126, 127, 130, 255])
def test_the_exit_status_is_the_commands(pod: Pod, status: int) -> None:
    done = pod.execute("sh", "-c", f"exit {status}")
    assert done.returncode == status
    assert (b"command terminated with exit code" in done.stderr) == (status != 0)


def test_the_words_arrive_as_they_are(pod: Pod) -> None:
    done = pod.execute("printf", "<%s>", *WORDS)
    assert done.stdout.decode() == "".join(f"<{word}>" for word in WORDS)


def test_stdin_arrives_as_it_is_and_ends(pod: Pod) -> None:
    data = os.urandom(3_000_001)
    assert pod.echo(data, status=9) == data


def test_stdin_is_empty_without_i(pod: Pod) -> None:
    assert pod.execute("sh", "-c", "cat; echo end").stdout == b"end\n"


def test_what_is_typed_arrives_before_stdin_ends(pod: Pod) -> None:
    with started(pod.kubectl("exec", "-i", NAME, "--", "cat")) as child:
        for line in (b"first\n", b"second\n"):
            child.stdin.write(line)
            assert child.stdout.readline() == line
        child.stdin.close()
        assert child.wait(HANG) == 0


def test_a_command_that_ends_does_not_wait_for_stdin(pod: Pod) -> None:
    with started(pod.kubectl("exec", "-i", NAME, "--", "echo", "done")) as child:
        assert child.stdout.read() == b"done\n"
        assert child.wait(HANG) == 0


@pytest.mark.parametrize("way", [way for way in WAYS if not way.any_bytes], indirect=True, ids=lambda way: way.name)
def test_the_scripts_encoding_eats_some_bytes(pod: Pod) -> None:
    assert pod.execute("printf", "<%s>", "Ä").stdout == b'<\xc3">'
    assert pod.execute("printf", "<%s>", "…").stdout == b"<\xe2\t\xa6>"
    assert pod.execute("printf", "<%s>", "two\nlines").stdout == b"<two><lines>"


@pytest.mark.parametrize("way", [way for way in WAYS if way.any_bytes], indirect=True, ids=lambda way: way.name)
def test_words_of_any_bytes_arrive_as_they_are(pod: Pod) -> None:
    words = ["Ä", "… .txt", "two\nlines", "\udc80\udc85\udcff"]
    done = pod.execute("printf", "<%s>", *words)
    assert done.stdout == b"".join(b"<%s>" % os.fsencode(word) for word in words)
