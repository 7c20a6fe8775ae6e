"""What the real command says when it fails: its exit code, and one sentence on stderr."""

import subprocess

from support import HANG


def sentence(result: subprocess.CompletedProcess[bytes], *words: str, code: int = 1) -> str:
    """The one line that a failure says; `words` must be in it, in this order."""
    line = result.stderr.decode()
    assert result.returncode == code, line
    assert result.stdout == b""
    assert line.startswith("fastvsock: ")
    assert line.endswith("\n")
    assert line.count("\n") == 1, line
    rest = line
    for word in words:
        assert word in rest, line
        rest = rest.partition(word)[2]
    return line


def wrong_usage(result: subprocess.CompletedProcess[bytes], *words: str) -> None:
    """A failure with the exit status of wrong usage, whose sentence is followed by the usage."""
    first, _, usage = result.stderr.partition(b"\n")
    sentence(subprocess.CompletedProcess(result.args, result.returncode, result.stdout, first + b"\n"), *words, code=2)
    assert usage.startswith(b"usage: ")
    assert usage.count(b"\n") == 1, usage


def outcome(child: subprocess.Popen[bytes]) -> subprocess.CompletedProcess[bytes]:
    """What a running child ends with."""
    out, err = child.communicate(timeout=HANG)
    return subprocess.CompletedProcess(child.args, child.returncode, out, err)
