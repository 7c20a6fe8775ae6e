"""`fastvsock exec --or-else PROGRAM ... ;`: another way where no agent is reached, and never a command twice."""

import os
import signal
import subprocess
from pathlib import Path

import pytest

from fastvsock.channels import protocol
from support import HANG, Listener, started
from support.channels import Guest, Peer, exec_in, umbrella

ELSE = ["--or-else", "sh", "-c", 'echo "else: $*"; cat; exit 9', "sh", "a  b", "--", ";"]


def exec_by(uds: str | Path, *words: str, **options: object) -> subprocess.CompletedProcess[bytes]:
    """Run `fastvsock exec` to its end, with something on stdin."""
    command = umbrella("exec", "-i", *words[:-1], str(uds), words[-1])
    return subprocess.run(command, input=b"in", capture_output=True, timeout=HANG, check=False, **options)  # type: ignore[call-overload, no-any-return]


def test_where_the_agent_answers_the_other_program_is_not_run(guest: Guest, engine: str) -> None:
    done = exec_in(guest, "sh", "-c", "echo guest; exit 125", options=ELSE, engine=engine)
    assert (done.returncode, done.stdout, done.stderr) == (125, b"guest\n", b"")


def test_a_command_that_cannot_be_started_in_the_guest_is_not_one_that_was_not_asked_for(
    guest: Guest, engine: str
) -> None:
    done = exec_in(guest, "/none", options=ELSE, engine=engine)
    assert (done.returncode, done.stdout) == (127, b"")


def test_where_there_is_no_socket_the_other_program_takes_over_everything(tmp_path: Path) -> None:
    done = exec_by(tmp_path / "none.sock", *ELSE, "true")
    assert (done.returncode, done.stdout, done.stderr) == (9, b"else: a  b --\nin", b"")


def test_where_the_vmm_refuses_the_port_the_other_program_takes_over(listener: Listener) -> None:
    with started(umbrella("exec", *ELSE, listener.uds, "true"), stdin=subprocess.DEVNULL) as child:
        listener.accept(b"").close()
        assert (child.stdout.read(), child.wait(HANG)) == (b"else: a  b --\n", 9)


def test_once_the_request_is_sent_nothing_is_run_here_whatever_happens(listener: Listener) -> None:
    with started(umbrella("exec", *ELSE, listener.uds, "true")) as child:
        with listener.accept() as guest:
            assert Peer(guest).receive()[0] == protocol.REQUEST
        assert (child.stdout.read(), child.wait(HANG)) == (b"", 125)
        assert b"ended early" in child.stderr.read()


def test_the_other_program_has_the_signals_of_a_fresh_one(tmp_path: Path) -> None:
    shown = ["--or-else", "grep", "-E", "^Sig(Blk|Ign)", "/proc/self/status", ";"]
    done = exec_by(
        tmp_path / "none.sock", *shown, "true", preexec_fn=lambda: signal.signal(signal.SIGHUP, signal.SIG_IGN)
    )
    blocked, ignored = (int(line.split()[1], 16) & 0x7FFFFFFF for line in done.stdout.splitlines())
    assert (blocked, ignored) == (0, 1 << (signal.SIGHUP - 1))


def test_one_that_is_not_there_has_the_status_of_a_shell(tmp_path: Path) -> None:
    done = exec_by(tmp_path / "none.sock", "--or-else", "/none", ";", "true")
    assert done.returncode == 127
    assert done.stderr == b"fastvsock: cannot run /none: No such file or directory\n"


@pytest.mark.parametrize("words", [["--or-else"], ["--or-else", ";"], ["--or-else", "cat", "u", "true"]], ids=" ".join)
def test_words_without_their_semicolon_are_wrong_usage(words: list[str]) -> None:
    done = subprocess.run(umbrella("exec", *words), capture_output=True, timeout=HANG, check=False)
    assert done.returncode == 125
    assert b"--or-else needs a program, and a word ';' after its arguments" in done.stderr


def test_the_whole_environment_goes_with_preserve_env_as_bytes_and_without_the_shells_own(
    guest: Guest, engine: str
) -> None:
    ours = {b"A": b"two\nlines", b"B": b"\x80\x85\xff", b"EMPTY": b"", b"PATH": os.environb[b"PATH"]}
    ours[b"LC_ALL"] = b"C.UTF-8"  # else Python sets LC_CTYPE: PEP 538
    shells = {b"_": b"x", b"PWD": b"/nowhere", b"OLDPWD": b"/", b"SHLVL": b"7"}
    options = ["--clear-env", "--preserve-env", "-e", "EMPTY=not now"]
    done = exec_in(guest, "/usr/bin/env", "-0", options=options, engine=engine, env={**ours, **shells})
    found = dict(item.split(b"=", 1) for item in done.stdout.split(b"\0") if item)
    assert found == {**ours, b"EMPTY": b"not now"}
