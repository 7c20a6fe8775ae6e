"""`fastvsock emulate`: its options, signals and sentences."""

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from fastvsock.emulator import VMMS, Emulator
from fastvsock.errors import EmulatorError
from support import HANG, called, started
from support.channels import within
from support.guests import SOON, accepted, connect, dial, drain, is_silent, receive

# The umbrella command where /dev holds nothing, as in a root that holds one static binary.
WITHOUT_NULL = """
import os
usual = os.open
def open(path, *rest, **more):
    if path == "/dev/null":
        raise FileNotFoundError(2, "No such file or directory", path)
    return usual(path, *rest, **more)
os.open = open
from fastvsock import cli
cli.main()
"""


def command(*arguments: str) -> list[str]:
    return [*called("fastvsock"), "emulate", *arguments]


def ready_line(child: subprocess.Popen[bytes]) -> str:
    assert child.stdout is not None
    return child.stdout.readline().decode()


def failure(*arguments: str) -> tuple[int, str]:
    done = subprocess.run(command(*arguments), capture_output=True, text=True, timeout=HANG, check=False)
    return done.returncode, done.stderr


@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 143), (signal.SIGINT, 130), (signal.SIGHUP, 129)])
def test_the_command_prints_when_it_is_ready_and_ends_on_a_signal(tmp_path: Path, number: int, status: int) -> None:
    uds = str(tmp_path / "v.sock")
    with started(command(uds)) as child:
        assert ready_line(child) == f"fastvsock emulate: listening on {uds} (ports 7 echo, 9 discard, 19 chargen)\n"
        with connect(uds, 7) as host:
            child.send_signal(number)
            assert child.wait(HANG) == status
            assert host.recv(1) == b""
        assert child.stderr is not None
        assert child.stderr.read() == b""
    assert not os.path.lexists(uds)


def test_when_its_terminal_goes_the_command_takes_its_children_along(tmp_path: Path) -> None:
    uds = str(tmp_path / "v.sock")
    with started(command(uds, "--exec=1=sh -c 'echo $$; sleep 1000; :'")) as child:
        ready_line(child)
        with connect(uds, 1) as host:
            number = int(host.recv(100))
            child.send_signal(signal.SIGHUP)
            assert child.wait(HANG) == 129
    assert not Path(f"/proc/{number}").exists()


def test_its_agent_works_where_there_is_no_dev_null(tmp_path: Path) -> None:
    uds = str(tmp_path / "v.sock")
    with started([sys.executable, "-c", WITHOUT_NULL, "emulate", "--agent", uds]) as child:
        assert "721 unix" in ready_line(child), child.stderr.read()
        words = ["exec", uds, "--", "sh", "-c", "cat; echo said; exit 3"]
        done = subprocess.run([*called("fastvsock"), *words], capture_output=True, timeout=HANG, check=False)
        assert (done.returncode, done.stdout, done.stderr) == (3, b"said\n", b"")
        child.terminate()
        assert child.wait(HANG) == 143
        assert child.stderr.read() == b""


def test_its_agent_ends_with_it_even_by_sigkill(tmp_path: Path) -> None:
    uds = str(tmp_path / "v.sock")
    with started(command("--agent", uds)) as child:
        ready_line(child)
        words = ["exec", "-i", uds, "--", "sh", "-c", "echo $$ $PPID; cat"]
        with started([*called("fastvsock"), *words]) as client:
            command_and_agent = [Path(f"/proc/{number.decode()}") for number in client.stdout.readline().split()]
            child.kill()
            assert within(HANG, lambda: not any(process.exists() for process in command_and_agent))


@pytest.mark.parametrize("number", [signal.SIGHUP, signal.SIGINT])
def test_the_command_leaves_signals_ignored_that_were_ignored_before(tmp_path: Path, number: signal.Signals) -> None:
    uds = str(tmp_path / "v.sock")
    with started(command(uds), preexec_fn=lambda: signal.signal(number, signal.SIG_IGN)) as child:
        ready_line(child)
        child.send_signal(number)
        with connect(uds, 7) as host:
            host.sendall(b"still there?")
            assert receive(host, 12) == b"still there?"
        child.terminate()
        assert child.wait(HANG) == 143


def test_the_commands_options_give_ports_to_services(tmp_path: Path) -> None:
    uds = str(tmp_path / "v.sock")
    with socket.create_server(("127.0.0.1", 0)) as server:
        services = [
            "--echo=1",
            "--discard=2",
            "--chargen=3",
            "--exec=7=echo 'a b'",
            f"--tcp=5=127.0.0.1:{port(server)}",
        ]
        with started(command(uds, *services)) as child:
            names = "1 echo, 2 discard, 3 chargen, 5 tcp, 7 exec, 9 discard, 19 chargen"
            assert ready_line(child) == f"fastvsock emulate: listening on {uds} (ports {names})\n"
            with connect(uds, 7) as host:
                assert drain(host) == b"a b\n"
            with connect(uds, 5), server.accept()[0] as tcp, connect(uds, 1) as host:
                host.sendall(b"x")
                assert host.recv(1) == b"x"
                tcp.close()


def port(server: socket.socket) -> int:
    return int(server.getsockname()[1])


def test_verbose_logs_connections_to_stderr(tmp_path: Path) -> None:
    uds = str(tmp_path / "v.sock")
    with started(command("-v", uds)) as child:
        ready_line(child)
        connect(uds, 7).close()
        assert child.stderr is not None
        assert child.stderr.readline() == b"fastvsock: connection 1073741824 to port 7\n"
        assert child.stderr.readline() == b"fastvsock: connection 1073741824 to port 7 ended\n"


def test_a_socket_in_use_is_a_sentence_and_exit_status_1(emulator: Emulator) -> None:
    status, words = failure(emulator.uds)
    assert status == 1
    assert words.startswith(f"fastvsock: {emulator.uds}: cannot listen there: another process listens on it")
    assert words.count("\n") == 1


@pytest.mark.parametrize(
    "option",
    [
        "--exec=5",
        "--exec=5=",
        "--exec=5='",
        "--exec=5=/not/there",
        "--tcp=5=22",
        "--tcp=5=h:x",
        "--tcp=5=h:65536",
        "--tcp=5=127.0.0.1:0",
        "--tcp=5=127.0.0.1:\u0663",
        "--echo=x",
        "--what",
    ],
)
def test_an_invalid_service_is_an_error_and_no_socket_is_created(tmp_path: Path, option: str) -> None:
    uds = tmp_path / "v.sock"
    assert failure(str(uds), option)[0] == 2
    assert not uds.exists()


@pytest.mark.parametrize(
    "options",
    [
        ["--echo=5", "--discard=5"],
        ["--exec=5=cat", "--tcp=5=127.0.0.1:22"],
        ["--exec=5=cat", "--exec=5=tac"],
        ["--echo=5", "--echo=05"],
    ],
    ids=" ".join,
)
def test_a_port_with_two_services_is_wrong_usage(tmp_path: Path, options: list[str]) -> None:
    uds = tmp_path / "v.sock"
    assert failure(str(uds), *options) == (2, "fastvsock: guest port 5 has two services: give it one\n")
    assert not uds.exists()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--agent", "--echo=721"], "guest port 721 is the agent's with --agent: give the other service another port"),
        (["--exec=x=y"], "invalid guest port 'x': expected a number from 0 to 4294967295"),
        (["--exec=1=y"], "invalid --exec '1=y': no such program: 'y'"),
        (["--exec=1"], "invalid --exec '1': expected PORT=COMMAND (the command is empty)"),
        (["--tcp=1=y"], "invalid --tcp '1=y', its target 'y': expected HOST:PORT with PORT from 1 to 65535"),
    ],
)
def test_a_service_that_cannot_be_meant_is_reported(tmp_path: Path, options: list[str], words: str) -> None:
    assert failure(str(tmp_path / "v.sock"), *options) == (2, f"fastvsock: {words}\n")


def test_the_commands_help_explains_its_exit_status() -> None:
    shown = subprocess.run(command("--help"), capture_output=True, text=True, timeout=HANG, check=True).stdout
    assert "exit status: " in shown
    assert "128+n" in shown


@pytest.mark.parametrize(
    ("name", "shown"), [(b"two\nlines", r"two\nlines"), (b"\xff.sock", r"\xff.sock"), (b"\x1b[31m", r"\x1b[31m")]
)
def test_a_path_with_odd_bytes_is_printed_on_one_line(tmp_path: Path, name: bytes, shown: str) -> None:
    uds = os.fsencode(tmp_path) + b"/" + name
    with started(command(os.fsdecode(uds))) as child:
        words = f"listening on {tmp_path}/{shown} (ports 7 echo, 9 discard, 19 chargen)\n"
        assert ready_line(child) == f"fastvsock emulate: {words}"
        status, words = failure(os.fsdecode(uds))
    assert status == 1
    assert words.startswith(f"fastvsock: {tmp_path}/{shown}: cannot listen there: another process listens on it")


@pytest.mark.parametrize("vmm", VMMS)
def test_the_option_vmm_decides_what_a_half_close_does(tmp_path: Path, vmm: str) -> None:
    uds = str(tmp_path / "v.sock")
    with started(command(f"--vmm={vmm}", uds)) as child:
        ready_line(child)
        with connect(uds, 9) as host:
            host.sendall(b"five!")
            host.shutdown(socket.SHUT_WR)
            assert drain(host) == (b"5\n" if vmm == "cloud-hypervisor" else b"")


def test_an_unknown_vmm_is_wrong_usage_and_a_value_error(tmp_path: Path) -> None:
    uds = str(tmp_path / "v.sock")
    status, words = failure("--vmm=qemu", uds)
    assert status == 2
    assert "firecracker" in words
    with pytest.raises(ValueError, match="unknown VMM 'qemu': use firecracker or cloud-hypervisor"):
        Emulator(uds, vmm="qemu")


@pytest.mark.parametrize("options", [[], ["-v"]])
@pytest.mark.parametrize(
    ("size", "words"),
    [
        (96, ""),
        (97, "the path of the UDS has 97 bytes, and a Unix socket address 107: with _PORT behind it there is no room "
         "for ports above 999999999"),
        (105, "ports above 9"),
        (106, "there is no room for any port"),
        (107, "there is no room for any port"),
        (108, "the path of the UDS has 108 bytes, and a Unix socket address 107: a VMM cannot listen there"),
    ],
)  # fmt: skip
def test_a_path_that_is_too_long_for_a_vmm_is_reported_at_the_start(
    tmp_path: Path, size: int, words: str, options: list[str]
) -> None:
    folder = tmp_path / "d"
    folder.mkdir()
    uds = f"{folder}/".ljust(size, "v")
    with started(command(uds, *options)) as child:
        assert "listening" in ready_line(child)
        child.terminate()
        child.wait(HANG)
        warning = child.stderr.read().decode()
    assert warning.count("\n") == (1 if words else 0)
    assert words in warning


def test_an_empty_path_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(EmulatorError, match="the path of the UDS is empty"):
        Emulator("").start()
    assert failure("")[0] == 2


@pytest.mark.parametrize("limit", [40, 41, 42])
def test_out_of_descriptors_it_answers_no_connection_until_a_connection_ends(tmp_path: Path, limit: int) -> None:
    uds = str(tmp_path / "v.sock")
    with started(["sh", "-c", f'ulimit -n {limit}; exec "$@"', "sh", *command(uds)]) as child:
        ready_line(child)
        hosts: list[socket.socket] = []
        while len(hosts) < 40:
            hosts.append(dial(uds))
            hosts[-1].sendall(b"CONNECT 9\n")
            if is_silent(hosts[-1], 1.5):
                break
            assert accepted(hosts[-1])
        assert 5 < len(hosts) < 40
        before = processor_time(child.pid)
        assert is_silent(hosts[-1])
        assert processor_time(child.pid) - before < 0.05
        hosts[0].close()
        assert accepted(hosts[-1])
        for host in hosts:
            host.close()


def test_an_idle_emulator_uses_no_processor_time(tmp_path: Path) -> None:
    uds = str(tmp_path / "v.sock")
    with started(command(uds, "--exec=5=sleep 100", "--exec=6=sh -c 'exec >&- <&-'")) as child:
        ready_line(child)
        with connect(uds, 19), connect(uds, 7), connect(uds, 5) as unread, dial(uds):
            unread.settimeout(SOON)
            with pytest.raises(TimeoutError):
                unread.sendall(bytes(1_000_000))
            time.sleep(SOON)
            before = processor_time(child.pid)
            time.sleep(1)
            assert processor_time(child.pid) - before < 0.05


def processor_time(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
