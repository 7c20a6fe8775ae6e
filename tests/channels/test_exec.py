"""`fastvsock exec`: the real command, against the real agent."""

import hashlib
import os
import re
import subprocess
from pathlib import Path

import pytest

from support import HANG, read_exactly, write_all
from support.channels import LIBC_SIGNALS, REAL_GUEST, Guest, exec_in, executing, umbrella

LARGE = 10_000_000 if REAL_GUEST.uds else 20_000_000


def test_stdout_and_status_are_the_commands(guest: Guest, engine: str) -> None:
    done = exec_in(guest, "sh", "-c", "echo out; echo err >&2; exit 7", engine=engine)
    assert (done.returncode, done.stdout, done.stderr) == (7, b"out\n", b"err\n")


@pytest.mark.parametrize("status", [0, 1, 2, 42, 125, 126, 127, 128, 255])
def test_every_status_comes_back(guest: Guest, engine: str, status: int) -> None:
    assert exec_in(guest, "sh", "-c", f"exit {status}", engine=engine).returncode == status


def test_a_signal_that_ended_the_command_is_128_and_its_number(guest: Guest, engine: str) -> None:
    assert exec_in(guest, "sh", "-c", "kill -KILL $$", engine=engine).returncode == 137


def test_stdin_is_passed_on_when_it_is_asked_for(guest: Guest, engine: str) -> None:
    assert exec_in(guest, "cat", input=b"some bytes", engine=engine).stdout == b"some bytes"


def test_without_i_stdin_is_empty_and_ours_is_left_alone(guest: Guest, engine: str) -> None:
    read_end, write_end = os.pipe()
    write_all(write_end, b"ours")
    with executing(guest, "wc", "-c", engine=engine, stdin=read_end) as child:
        assert child.stdout.read().strip() == b"0"
    assert os.read(read_end, 100) == b"ours"
    os.close(read_end)
    os.close(write_end)


def test_the_end_of_an_empty_stdin_reaches_the_command(guest: Guest, engine: str) -> None:
    assert exec_in(guest, "wc", "-c", input=b"", engine=engine).stdout == b"0\n"


def test_the_end_of_stdin_reaches_the_command_while_it_answers(guest: Guest, engine: str) -> None:
    with executing(guest, "cat", options=["-i"], engine=engine) as child:
        child.stdin.write(b"abc")
        assert os.read(child.stdout.fileno(), 100) == b"abc"
        child.stdin.close()
        assert child.wait(HANG) == 0


@pytest.mark.parametrize("size", [1, 65535, 65536, 65537, LARGE])
def test_a_stream_up_and_down_is_whole(guest: Guest, engine: str, size: int, tmp_path: Path) -> None:
    data = os.urandom(size)
    done = exec_in(guest, "cat", input=data, engine=engine)
    assert hashlib.sha256(done.stdout).digest() == hashlib.sha256(data).digest()
    (tmp_path / "up").write_bytes(data)
    with (
        (tmp_path / "up").open("rb") as up,
        (tmp_path / "down").open("wb") as down,
        executing(guest, "cat", options=["-i"], engine=engine, stdin=up, stdout=down) as child,
    ):
        assert child.wait(HANG) == 0
    assert (tmp_path / "down").read_bytes() == data


def test_bytes_stay_bytes(guest: Guest, engine: str) -> None:
    every = bytes(byte for byte in range(1, 256))
    words = [b"", b" ", b"'\"\\$`", b"a\nb", every, b"\x80\x85\xff", b"x" * 100_000, "Ä €".encode(), b"--", b"-i", b""]
    done = exec_in(guest, "sh", "-c", "printf '%s\\0' \"$@\"", "sh", *map(os.fsdecode, words), engine=engine)
    assert done.stdout.split(b"\0") == [*words, b""]


def test_the_environment_is_the_agents_and_what_is_asked_for(guest: Guest, engine: str, tmp_path: Path) -> None:
    (tmp_path / "env").write_bytes(b"# a comment\nFROM_FILE=a b'c\n\nHERE\nMISSING_HERE\n")
    options = ["-e", "ODD=\udcff\n=x", "-e", "HERE", "-eGLUED=1", "--env=LONG=2", "--env-file", str(tmp_path / "env")]
    done = exec_in(guest, "env", "-0", options=options, engine=engine, env={**os.environ, "HERE": "there"})
    found = dict(line.split(b"=", 1) for line in done.stdout.split(b"\0") if line)
    assert found[b"ODD"] == b"\xff\n=x"
    assert found[b"HERE"] == b"there"
    assert (found[b"GLUED"], found[b"LONG"], found[b"FROM_FILE"]) == (b"1", b"2", b"a b'c")
    assert b"PATH" in found
    assert b"MISSING_HERE" not in found


def test_clear_env_leaves_what_is_asked_for_alone(guest: Guest, engine: str) -> None:
    done = exec_in(guest, "env", options=["--clear-env", "-e", "A=1"], engine=engine)
    assert done.stdout == b"A=1\n"


def test_a_command_is_found_by_the_path_that_it_gets(guest: Guest, engine: str, tmp_path: Path) -> None:
    write = 'mkdir -p "$1" && cd "$1" && cat >mine && chmod 755 mine'
    exec_in(guest, "sh", "-c", write, "sh", str(tmp_path), engine=engine, input=b"#!/bin/sh\necho mine\n")
    done = exec_in(guest, "mine", options=["-e", f"PATH=/nope:{tmp_path}"], engine=engine)
    assert (done.returncode, done.stdout) == (0, b"mine\n")


def test_the_working_directory(guest: Guest, engine: str, tmp_path: Path) -> None:
    folder = tmp_path / os.fsdecode(b"a b\n\xff")
    exec_in(guest, "mkdir", "-p", str(folder), engine=engine)
    done = exec_in(guest, "pwd", options=["-w", str(folder)], engine=engine)
    assert done.stdout == os.fsencode(folder) + b"\n"


@pytest.mark.skipif(os.getuid() != 0, reason="needs root")
@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (["-u", "nobody"], b"65534 65534 65534"),
        (["-u", "1234"], b"1234 0 0"),
        (["-u", "1234:5678"], b"1234 5678 5678"),
        (["-u", "nobody:root"], b"65534 0 0"),
        (["-u", "nobody", "--groups", "3,daemon"], b"65534 65534 65534 1 3"),
        (["--groups", "7"], b"0 0 0 7"),
    ],
)
def test_the_user_and_the_groups(guest: Guest, engine: str, options: list[str], expected: bytes) -> None:
    done = exec_in(guest, "sh", "-c", "echo $(id -u) $(id -g) $(id -G)", options=options, engine=engine)
    found = done.stdout.split()
    assert [*found[:3], *sorted(found[3:])] == expected.split(), done.stderr


@pytest.mark.skipif(os.getuid() != 0, reason="needs root")
def test_the_working_directory_may_be_one_that_only_the_agent_may_enter(
    guest: Guest, engine: str, tmp_path: Path
) -> None:
    exec_in(guest, "mkdir", "-p", "-m", "700", str(tmp_path / "mine"), engine=engine)
    options = ["-u", "nobody", "-w", str(tmp_path / "mine")]
    done = exec_in(guest, "readlink", "/proc/self/cwd", options=options, engine=engine)
    assert done.stdout == os.fsencode(tmp_path / "mine") + b"\n", done.stderr


@pytest.mark.skipif(os.getuid() != 0, reason="needs root")
def test_a_user_has_a_home(guest: Guest, engine: str) -> None:
    done = exec_in(guest, "sh", "-c", "echo $HOME $USER", options=["-u", "nobody"], engine=engine)
    assert done.stdout == b"/nonexistent nobody\n"


@pytest.mark.parametrize(
    ("options", "words", "status", "sentence"),
    [
        ([], ["nope"], 127, "cannot run nope in the guest: No such file or directory"),
        ([], ["/nope/nope"], 127, "cannot run /nope/nope in the guest: No such file or directory"),
        ([], [""], 127, "cannot run  in the guest: No such file or directory"),
        ([], ["/etc/passwd"], 126, "cannot run /etc/passwd in the guest: Permission denied"),
        ([], ["/etc"], 126, "cannot run /etc in the guest: Permission denied"),
        (["-w", "/nope"], ["true"], 126, "cannot use the guest's directory /nope: No such file or directory"),
        (["-w", "/etc/passwd"], ["true"], 126, "cannot use the guest's directory /etc/passwd: Not a directory"),
        (["-u", "nope"], ["true"], 126, "cannot run as user nope in the guest: there is no such user"),
        (["-u", "-1"], ["true"], 126, "cannot run as user -1 in the guest: there is no such user"),
        (["-u", "4294967295"], ["true"], 126, "cannot run as user 4294967295 in the guest: there is no such user"),
        (["-u", ":nope"], ["true"], 126, "unknown group nope in the guest"),
        (["--groups", "nope"], ["true"], 126, "unknown group nope in the guest"),
        ([], ["\x1b[31m\n"], 127, "cannot run \\x1b[31m\\n in the guest"),
    ],
)
def test_what_cannot_be_run_is_a_status_and_a_sentence(
    guest: Guest, engine: str, options: list[str], words: list[str], status: int, sentence: str
) -> None:
    done = exec_in(guest, *words, options=options, engine=engine)
    assert done.returncode == status
    assert done.stderr.decode().startswith(f"fastvsock: {sentence}"), done.stderr
    assert done.stderr.count(b"\n") == 1
    assert not done.stdout


def test_the_command_has_nothing_but_its_three_descriptors(guest: Guest, engine: str) -> None:
    done = exec_in(guest, "ls", "/proc/self/fd", engine=engine)
    assert done.stdout.split() == [b"0", b"1", b"2", b"3"]  # 3 reads the folder


def test_the_command_has_a_session_and_a_group_of_its_own(guest: Guest, engine: str) -> None:
    pid, group, session = exec_in(guest, "cut", "-d ", "-f1,5,6", "/proc/self/stat", engine=engine).stdout.split()
    assert pid == group == session


def test_the_command_has_the_default_signals(guest: Guest, engine: str) -> None:
    done = exec_in(guest, "grep", "-E", "^Sig(Blk|Ign)", "/proc/self/status", engine=engine)
    blocked, ignored = (int(line.split()[1], 16) for line in done.stdout.splitlines())
    assert (blocked, ignored & ~LIBC_SIGNALS) == (0, 0)


def test_a_background_process_that_keeps_stdout_is_not_waited_for(guest: Guest, engine: str) -> None:
    script = "yes no | head -c 300000; sleep 1000 & echo; echo $!"
    done = exec_in(guest, "sh", "-c", script, engine=engine)
    assert done.returncode == 0
    assert len(done.stdout) > 300_000, "what the command itself wrote is whole"
    exec_in(guest, "sh", "-c", "kill -9 $1", "sh", done.stdout.split()[-1].decode(), engine=engine)


def test_an_unread_stderr_does_not_hold_up_stdout(guest: Guest, engine: str) -> None:
    script = "head -c 60000 /dev/zero >&2; head -c 3000000 /dev/zero; head -c 3000000 /dev/zero >&2"
    with executing(guest, "sh", "-c", script, engine=engine) as child:
        assert len(read_exactly(child.stdout.fileno(), 3_000_000)) == 3_000_000
        assert len(read_exactly(child.stderr.fileno(), 3_060_000)) == 3_060_000
        assert child.wait(HANG) == 0


def test_a_reader_that_leaves_ends_the_command_as_a_local_pipe_would(guest: Guest, engine: str) -> None:
    with executing(guest, "yes", engine=engine) as child:
        assert child.stdout.read(2) == b"y\n"
        child.stdout.close()
        assert child.wait(HANG) == 128 + 13


def test_a_command_that_leaves_its_stdin_unread_is_not_waited_for(guest: Guest, engine: str) -> None:
    with executing(guest, "sh", "-c", "exec <&-; echo deaf; sleep 0.2", options=["-i"], engine=engine) as child:
        assert child.stdout.readline() == b"deaf\n"
        try:
            for _ in range(100):
                child.stdin.write(bytes(65536))
        except BrokenPipeError:
            pass
        assert child.wait(HANG) == 0


def test_a_full_disk_is_a_failure(guest: Guest, engine: str) -> None:
    with open("/dev/full", "wb") as full:
        done = exec_in(guest, "sh", "-c", "echo bytes; exit 0", engine=engine, stdout=full)
    assert (done.returncode, done.stderr) == (125, b"fastvsock: cannot write stdout: No space left on device\n")


@pytest.mark.parametrize("fd", [0, 1, 2])
def test_a_closed_descriptor_is_no_obstacle(guest: Guest, engine: str, fd: int) -> None:
    done = exec_in(guest, "true", engine=engine, input=b"", preexec_fn=lambda: os.close(fd))
    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")


def test_one_pipe_for_both_outputs(guest: Guest, engine: str) -> None:
    done = exec_in(guest, "sh", "-c", "echo out; echo err >&2", engine=engine, stderr=subprocess.STDOUT)
    assert sorted(done.stdout.split()) == [b"err", b"out"]


def test_stats_is_one_line(guest: Guest, engine: str) -> None:
    done = exec_in(guest, "cat", input=b"12345", options=["--stats"], engine=engine)
    way = rf"5 bytes, \d+\.\d MiB/s, {engine}; "
    assert re.fullmatch(rf"fastvsock: up {way}down {way}\d\.\d+ s, CPU \d\.\d+ s\n", done.stderr.decode())


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ([], "expected UDS and COMMAND"),
        (["v.sock"], "expected UDS and COMMAND"),
        (["v.sock", "--"], "expected UDS and COMMAND"),
        (["--fast", "/x", "true"], "unknown option --fast"),
        (["-z", "/x", "true"], "unknown option -z"),
        (["--tty=1", "/x", "true"], "unknown option --tty=1"),
        (["-e"], "-e needs a value"),
        (["-e", "=x", "/x", "true"], "invalid variable '=x'"),
        (["--port", "-1", "/x", "true"], "'-1'"),
        (["--timeout", "0", "/x", "true"], "--timeout '0': expected a number of seconds more than 0"),
        (["--wait", "nan", "/x", "true"], "--wait 'nan': expected a number of seconds from 0"),
        (["--engine", "fast", "/x", "true"], "unknown engine 'fast'"),
        (["--env-file", "/nope", "/x", "true"], "cannot read --env-file /nope: No such file or directory"),
        (["/nope.sock", "true"], "/nope.sock: no such socket"),
        (["", "true"], "the path of the UDS is empty"),
    ],
)
def test_wrong_usage_and_a_missing_socket_are_125(arguments: list[str], sentence: str) -> None:
    done = subprocess.run(umbrella("exec", *arguments), capture_output=True, timeout=HANG, check=False)
    assert done.returncode == 125
    assert sentence in done.stderr.decode()
