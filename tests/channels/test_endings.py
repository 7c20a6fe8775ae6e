"""How a channel ends: by signals, by a client, an agent or a VMM that goes, and by a program that is not an agent."""

import os
import signal
import socket
import subprocess
import time
import uuid
from pathlib import Path

import pytest

from fastvsock.channels import protocol
from fastvsock.cli.exec import PATIENCE
from fastvsock.engines import frames
from support import HANG, Listener, read_exactly, started
from support.bad_frames import BAD
from support.channels import Guest, Peer, agent_on, exec_command, exec_in, executing, processes_with, umbrella, within

STARTED = protocol.started()
# Two processes, each of which says when it waits for a signal, and then that it has come.
GROUP = """
await() {
    trap 'taken=1' $1
    echo ready
    until [ "$taken" ]; do sleep 0.05; done
    echo taken
}
trap : $1
await $1 | { read line && await $1 && cat; }
exit 9
"""


@pytest.mark.parametrize("name", ["INT", "TERM", "HUP", "QUIT", "USR1", "USR2", "WINCH"])
def test_signals_go_to_the_commands_process_group(guest: Guest, engine: str, name: str) -> None:
    with executing(guest, "sh", "-c", GROUP, "sh", name, engine=engine) as child:
        assert child.stdout.readline() == b"ready\n"
        child.send_signal(getattr(signal, f"SIG{name}"))
        assert child.stdout.read() == b"taken\ntaken\n"
        assert child.wait(HANG) == 9


def test_a_signal_before_there_is_a_command_ends_exec(listener: Listener) -> None:
    with started(umbrella("exec", listener.uds, "true")) as child, listener.accept(b""):
        child.send_signal(signal.SIGTERM)
        assert child.wait(HANG) == 128 + signal.SIGTERM


def test_a_signal_before_the_agent_has_answered_ends_exec(listener: Listener, engine: str) -> None:
    with started(umbrella("exec", "--engine", engine, listener.uds, "true")) as child, listener.accept() as sock:
        sock.recv(1)  # the request, so that the handlers are there
        child.send_signal(signal.SIGINT)
        assert child.wait(HANG) == 128 + signal.SIGINT


def test_a_second_signal_ends_an_exec_whose_guest_hangs(engine: str, tmp_path: Path) -> None:
    with agent_on(tmp_path / "agent.sock", engine=engine) as guest:
        with executing(guest, "sh", "-c", "echo ready; exec sleep 1000", engine=engine) as child:
            assert child.stdout.readline() == b"ready\n"
            guest.agent.send_signal(signal.SIGSTOP)
            child.send_signal(signal.SIGINT)
            time.sleep(PATIENCE + 0.1)
            assert child.poll() is None
            while child.poll() is None:  # the first one may have been seen late
                child.send_signal(signal.SIGTERM)
                time.sleep(0.1)
            assert child.returncode == 125
            assert b"SIGTERM again, and no answer from the guest's agent for " in child.stderr.read()
        guest.agent.send_signal(signal.SIGCONT)


def test_a_command_that_ignores_a_signal_in_silence_gets_the_second_one_too(guest: Guest, engine: str) -> None:
    script = "trap '' INT; trap 'echo taken' TERM; echo ready; while :; do sleep 0.1; done"
    with executing(guest, "sh", "-c", script, engine=engine) as child:
        assert child.stdout.readline() == b"ready\n"
        child.send_signal(signal.SIGINT)
        time.sleep(PATIENCE + 0.1)
        child.send_signal(signal.SIGTERM)
        assert child.stdout.readline() == b"taken\n"


def test_nohup_is_respected(guest: Guest, engine: str) -> None:
    command = exec_command(guest, "sh", "-c", "echo ready; sleep 0.3; echo done", engine=engine)
    with started(["nohup", *command], stderr=subprocess.DEVNULL) as child:
        assert child.stdout.readline() == b"ready\n"
        child.send_signal(signal.SIGHUP)
        assert child.stdout.readline() == b"done\n"


@pytest.mark.parametrize(
    "script",
    [
        "sleep 1000; true",
        "trap '' HUP; while :; do sleep 0.1; done",
        "trap '' HUP TERM INT; (trap '' HUP TERM; while :; do sleep 0.1; done) & while :; do sleep 0.1; done",
        "kill -STOP $$",
        "set -m; (trap '' HUP; while :; do sleep 0.1; done) & exec sleep 1000",
    ],
)
def test_a_client_that_is_killed_leaves_no_process_behind(guest: Guest, engine: str, script: str) -> None:
    mark = uuid.uuid4().hex
    with executing(guest, "sh", "-c", script, mark, options=["-i"], engine=engine) as child:
        assert within(HANG, lambda: len(processes_with(mark)) > 1)
        child.kill()
        child.wait(HANG)
        assert within(5, lambda: not processes_with(mark))


def test_a_client_that_is_killed_is_noticed_while_output_stalls(guest: Guest, engine: str) -> None:
    mark = uuid.uuid4().hex
    with executing(guest, "sh", "-c", "yes", mark, engine=engine) as child:
        read_exactly(child.stdout.fileno(), 100_000)
        child.kill()
        child.wait(HANG)
        assert within(5, lambda: not processes_with(mark))


def test_an_agent_that_dies_is_125_and_says_how_far_it_came(engine: str, tmp_path: Path) -> None:
    with (
        agent_on(tmp_path / "agent.sock", engine=engine) as guest,
        executing(guest, "sh", "-c", "echo begun; sleep 1000", engine=engine) as child,
    ):
        assert child.stdout.readline() == b"begun\n"
        guest.agent.kill()
        assert child.wait(HANG) == 125
        said = child.stderr.read().decode()
    assert said.startswith("fastvsock: the connection to the guest's agent ended early, after 0 bytes up and 6 down: ")
    for pid in processes_with("1000"):
        os.kill(pid, signal.SIGKILL)


def test_an_agent_that_ends_ends_its_sessions(engine: str, tmp_path: Path) -> None:
    mark = uuid.uuid4().hex
    with (
        agent_on(tmp_path / "agent.sock", engine=engine) as guest,
        executing(guest, "sh", "-c", "echo begun; while :; do sleep 0.1; done", mark, engine=engine) as child,
    ):
        assert child.stdout.readline() == b"begun\n"
        guest.agent.send_signal(signal.SIGTERM)
        assert child.wait(HANG) == 125
        assert guest.agent.wait(HANG) == 128 + signal.SIGTERM
    assert processes_with(mark) == []
    assert not os.path.exists(guest.uds)


def test_wait_covers_an_agent_that_comes_later(engine: str, tmp_path: Path) -> None:
    path = tmp_path / "agent.sock"
    command = umbrella("exec", "--engine", engine, "--wait", "60", str(path), "echo", "hello")
    with started(command) as child, agent_on(path, engine=engine):
        assert child.communicate(timeout=HANG) == (b"hello\n", b"")


def test_an_agent_that_never_answers_is_a_sentence(listener: Listener, engine: str) -> None:
    command = umbrella("exec", "--engine", engine, "--timeout", "0.3", listener.uds, "true")
    with started(command) as child, listener.accept():
        assert child.wait(HANG) == 125
        said = child.stderr.read().decode()
    assert said.startswith("fastvsock: no answer from the guest's agent within 0.3 s: ")
    assert "--timeout" in said


def answered(listener: Listener, engine: str, answer: bytes) -> tuple[int, str]:
    """The status and the sentence of `exec` where an agent answers the request so, and then closes."""
    with started(umbrella("exec", "--engine", engine, listener.uds, "true")) as child:
        with listener.accept() as connection:
            Peer(connection).receive()
            connection.sendall(answer)
            connection.shutdown(socket.SHUT_WR)
            assert child.wait(HANG) == 125
        said = child.stderr.read().decode()
    assert said.startswith("fastvsock: ")
    assert said.count("\n") == 1
    return child.returncode, said


@pytest.mark.parametrize("name", [name for name in BAD if name not in ("wrong way", "two frames")])
def test_frames_that_break_the_rules_are_refused(listener: Listener, engine: str, name: str) -> None:
    assert "the guest's agent sent " in answered(listener, engine, STARTED + BAD[name][0])[1]


@pytest.mark.parametrize(
    "answer",
    [
        STARTED * 2,
        STARTED + protocol.failed("command", 2, b"true"),
        STARTED + protocol.exited(0),
        STARTED + frames.end_frame(1, 0) + protocol.exited(0),
        protocol.exited(0),
        protocol.done(),
        frames.frame(40, 0, b"unknown"),
        frames.frame(protocol.FAILED, 0, b""),
        frames.frame(protocol.FAILED, 0, b"\xff\0\0\0\0name"),
        frames.frame(protocol.STARTED, 0, b"\x09\0\0\0\xffx"),
        STARTED + protocol.signalled(),
        STARTED + frames.frame(protocol.EXIT, 0, b""),
        STARTED + frames.frame(protocol.EXIT, 0, b"\0\0\0"),
        b"SSH-2.0-OpenSSH_9.9\r\n",
        b"HTTP/1.1 400 Bad Request\r\n\r\n",
    ],
)
def test_messages_out_of_order_are_refused(listener: Listener, engine: str, answer: bytes) -> None:
    assert "the guest's agent sent " in answered(listener, engine, answer)[1]


@pytest.mark.parametrize(
    "answer",
    [b"", b"\x11", STARTED, STARTED + frames.frame(frames.DATA, 1, b"some"), STARTED + frames.end_frame(1, 0)],
)
def test_a_connection_that_ends_before_the_exit_status_is_broken(
    listener: Listener, engine: str, answer: bytes
) -> None:
    assert "the connection to the guest's agent ended early" in answered(listener, engine, answer)[1]


def test_what_the_guest_says_cannot_write_to_the_terminal(listener: Listener, engine: str) -> None:
    _, said = answered(listener, engine, protocol.failed("process", 99999, b"\x1b[2J") + b"")
    assert "\x1b" not in said


def test_an_agent_of_another_version_says_which_it_knows(guest: Guest, listener: Listener, engine: str) -> None:
    with socket.socket(socket.AF_UNIX) as sock:
        sock.connect(guest.uds)
        peer = Peer(sock)
        peer.send(protocol.REQUEST, 0, b"\0\x63\x01")
        kind, _, payload = peer.receive()
    assert (kind, payload) == (protocol.FAILED, protocol.failed("version", 0, b"1")[frames.HEADER :])
    _, said = answered(listener, engine, protocol.failed("version", 0, b"7"))
    assert "knows the protocol's version 7 only" in said


def test_an_exit_that_nobody_acknowledges_is_not_waited_for(guest: Guest, engine: str) -> None:
    """A client that is killed at the last moment leaves nothing of the channel behind."""
    before = len(list(Path(f"/proc/{guest.agent.pid}/fd").iterdir()))
    for _ in range(20):
        with socket.socket(socket.AF_UNIX) as sock:
            sock.connect(guest.uds)
            sock.sendall(protocol.Request(protocol.EXEC, arguments=[b"true"]).encode())
            assert Peer(sock).receive()[0] == protocol.STARTED
    assert within(HANG, lambda: len(list(Path(f"/proc/{guest.agent.pid}/fd").iterdir())) <= before)


def test_a_paused_reader_gets_everything_after_the_command_has_ended(guest: Guest, engine: str) -> None:
    mark = uuid.uuid4().hex
    with executing(guest, "sh", "-c", "head -c 200000 /dev/zero", mark, engine=engine) as child:
        assert within(HANG, lambda: not [pid for pid in processes_with(mark) if pid != child.pid])
        assert len(read_exactly(child.stdout.fileno(), 1 << 20)) == 200_000
        assert child.wait(HANG) == 0


def test_a_port_without_an_agent_is_125(engine: str, tmp_path: Path) -> None:
    uds = str(tmp_path / "v.sock")
    with started(umbrella("emulate", uds), stderr=subprocess.DEVNULL) as vmm:
        assert vmm.stdout.readline()
        done = exec_in(Guest(uds, vmm), "true", engine=engine)
    assert done.returncode == 125
    assert "guest port 721 refused" in done.stderr.decode()
