"""What `runcvm-vsock-connect` promises, against whatever VMM the `endpoint` fixture stands for, with both engines.

D1 to D5 are the defects of the transport that this program replaces in RunCVM.
"""

import socket
import subprocess
import threading
import time
from pathlib import Path

import pytest

from support import (
    CHARGEN,
    CLOSE,
    COMMAND,
    DISCARD,
    ECHO,
    HANG,
    LATE_SOURCE,
    NOTHING,
    SOURCE,
    SOURCE_SIZE,
    Endpoint,
    connecting,
    pattern,
    read_exactly,
    run,
    started,
    summary,
    write_all,
)
from support.sentences import wrong_usage


def test_d1_a_few_bytes_are_forwarded_at_once(endpoint: Endpoint, engine: str) -> None:
    with connecting(endpoint.uds, ECHO, engine=engine) as child:
        for line in (b"hello\n", b"x", b"again\n"):
            write_all(child.stdin.fileno(), line)
            assert read_exactly(child.stdout.fileno(), len(line)) == line


def test_d2_the_end_of_the_guest_ends_the_process_although_stdin_is_open(endpoint: Endpoint, engine: str) -> None:
    with connecting(endpoint.uds, SOURCE, engine=engine) as child:
        assert read_exactly(child.stdout.fileno(), SOURCE_SIZE + 1) == pattern(SOURCE_SIZE)
        assert child.wait(HANG) == 0
        assert child.stderr.read() == b""


def test_d2_holds_while_stdin_is_being_fed(endpoint: Endpoint, engine: str) -> None:
    with connecting(endpoint.uds, COMMAND, engine=engine) as child:
        write_all(child.stdin.fileno(), b"source 1000\n")
        assert read_exactly(child.stdout.fileno(), 1001) == pattern(1000)
        assert child.wait(HANG) == 0


def test_d3_the_end_of_stdin_loses_nothing_of_an_echo(endpoint: Endpoint, engine: str) -> None:
    payload = pattern(endpoint.size(16_000_000))
    done = run("--linger", endpoint.linger, endpoint.uds, str(ECHO), engine=engine, input=payload)
    assert (done.returncode, done.stderr) == (0, b"")
    assert done.stdout == payload


def test_d3_the_end_of_stdin_does_not_lose_the_answer_to_it(endpoint: Endpoint, engine: str) -> None:
    payload = pattern(endpoint.size(16_000_000))
    request = b"sink %d\n" % len(payload)
    done = run("--linger", endpoint.linger, endpoint.uds, str(COMMAND), engine=engine, input=request + payload)
    assert (done.returncode, done.stdout, done.stderr) == (0, summary(payload), b"")


def test_d3_a_slow_reader_in_the_guest_is_no_silence(endpoint: Endpoint, engine: str) -> None:
    # 400 pauses of 10 ms: far longer than the linger, while all was handed over to the kernel long ago.
    payload = pattern(400 * 4096)
    request = b"slow %d 10\n" % len(payload)
    done = run("--linger", "1.5", endpoint.uds, str(COMMAND), engine=engine, input=request + payload)
    assert (done.returncode, done.stdout) == (0, summary(payload))


def test_d3_a_guest_that_stands_still_before_it_reads_is_no_silence(endpoint: Endpoint, engine: str) -> None:
    # Most of it still waits in the host's socket when the linger has passed.
    payload = pattern(3_000_000)
    request = b"sleep 2 sink %d\n" % len(payload)
    done = run("--linger", "0.4", endpoint.uds, str(COMMAND), engine=engine, input=request + payload)
    assert (done.returncode, done.stdout) == (0, summary(payload))


def test_d4_an_invalid_port_is_reported_in_a_sentence(endpoint: Endpoint) -> None:
    done = run(endpoint.uds, "ssh")
    wrong_usage(done, "fastvsock: invalid guest port 'ssh': expected a number from 0 to 4294967295\n")


def test_d5_failure_and_success_have_their_own_exit_status(endpoint: Endpoint, engine: str) -> None:
    assert run(endpoint.uds, str(CLOSE), engine=engine).returncode == 0
    assert run(endpoint.uds, str(NOTHING), engine=engine).returncode == 1
    assert run(endpoint.uds + ".not", str(ECHO), engine=engine).returncode == 1
    assert run(endpoint.uds, engine=engine).returncode == 2


def test_a_port_where_nothing_listens_is_refused(endpoint: Endpoint) -> None:
    done = run(endpoint.uds, str(NOTHING))
    assert done.returncode == 1
    assert done.stderr.startswith(f"fastvsock: {endpoint.uds}: guest port {NOTHING} refused: nothing".encode())


def test_a_guest_that_closes_at_once_is_a_success_without_bytes(endpoint: Endpoint, engine: str) -> None:
    done = run(endpoint.uds, str(CLOSE), engine=engine)
    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")


@pytest.mark.parametrize("kind", ["null", "empty pipe", "closed"])
def test_without_anything_on_stdin_the_run_is_receive_only(endpoint: Endpoint, engine: str, kind: str) -> None:
    # The guest waits a second before it sends: twice the linger that would apply.
    if kind == "empty pipe":
        done = run(endpoint.uds, str(LATE_SOURCE), engine=engine, input=b"")
    elif kind == "null":
        done = run(endpoint.uds, str(LATE_SOURCE), engine=engine)
    else:
        shell = ["sh", "-c", 'exec "$@" <&-', "sh"]
        done = run(endpoint.uds, str(LATE_SOURCE), engine=engine, before=shell)
    assert (done.returncode, done.stderr) == (0, b"")
    assert done.stdout == pattern(SOURCE_SIZE)


def test_linger_0_half_closes_at_once_and_the_vmm_drops_what_was_to_come(endpoint: Endpoint, engine: str) -> None:
    done = run("--linger", "0", endpoint.uds, str(LATE_SOURCE), engine=engine)
    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")


def test_after_linger_seconds_of_silence_the_guest_gets_its_end_of_input(endpoint: Endpoint, engine: str) -> None:
    # `hold` ends only when its input does.
    done = run("--linger", "0.3", endpoint.uds, str(COMMAND), engine=engine, input=b"hold 5000\n")
    assert (done.returncode, done.stdout, done.stderr) == (0, pattern(5000), b"")


def test_linger_inf_waits_for_an_answer_as_late_as_it_may_be(endpoint: Endpoint, engine: str) -> None:
    request = b"sleep 2 source 1000\n"
    done = run("--linger", "inf", endpoint.uds, str(COMMAND), engine=engine, input=request)
    assert (done.returncode, done.stdout) == (0, pattern(1000))
    done = run("--linger", "0.2", endpoint.uds, str(COMMAND), engine=engine, input=request)
    assert (done.returncode, done.stdout) == (0, b""), "the reason for linger: a half-close costs the answer"


def test_silence_is_not_counted_while_stdout_is_what_holds_things_up(endpoint: Endpoint, engine: str) -> None:
    size = 8_000_000 if not endpoint.real else 4_000_000  # more than all buffers on the way take
    with connecting(endpoint.uds, COMMAND, "--linger", "0.3", engine=engine) as child:
        write_all(child.stdin.fileno(), b"source %d\n" % size)
        child.stdin.close()
        with pytest.raises(subprocess.TimeoutExpired):
            child.wait(2)
        assert read_exactly(child.stdout.fileno(), size + 1) == pattern(size)
        assert child.wait(HANG) == 0


def test_both_directions_at_once_come_through_whole(endpoint: Endpoint, engine: str) -> None:
    payload = pattern(endpoint.size(24_000_000))
    with connecting(endpoint.uds, ECHO, engine=engine) as child:
        feeder = threading.Thread(target=write_all, args=(child.stdin.fileno(), payload))
        feeder.start()
        assert read_exactly(child.stdout.fileno(), len(payload)) == payload
        feeder.join()
        child.stdin.close()
        assert child.wait(HANG) == 0


def test_a_guest_that_does_not_read_does_not_hold_up_what_it_sends(endpoint: Endpoint, engine: str) -> None:
    with connecting(endpoint.uds, CHARGEN, engine=engine) as child:
        # chargen never reads: up is stuck after some hundred KiB, with megabytes still in the feeder's hands.
        feeder = threading.Thread(target=_write_until_broken, args=(child.stdin.fileno(), bytes(8_000_000)))
        feeder.start()
        size = endpoint.size(16_000_000)
        assert read_exactly(child.stdout.fileno(), size) == pattern(size)
        child.kill()
        feeder.join()


def _write_until_broken(fd: int, data: bytes) -> None:
    try:
        write_all(fd, data)
    except BrokenPipeError:
        pass


def test_a_guest_that_half_closes_can_still_be_sent_to(endpoint: Endpoint, engine: str) -> None:
    with connecting(endpoint.uds, COMMAND, "--linger", "0.3", engine=engine) as child:
        write_all(child.stdin.fileno(), b"half 1000\n")
        assert read_exactly(child.stdout.fileno(), 1000) == pattern(1000)
        with pytest.raises(subprocess.TimeoutExpired):
            child.wait(0.5)  # a VMM tells nothing of the guest's half-close
        write_all(child.stdin.fileno(), b"more")
        child.stdin.close()
        assert child.wait(HANG) == 0


def test_when_nobody_reads_stdout_the_process_ends_quietly_while_nothing_moves(endpoint: Endpoint, engine: str) -> None:
    with connecting(endpoint.uds, ECHO, engine=engine) as child:
        write_all(child.stdin.fileno(), b"x")
        assert read_exactly(child.stdout.fileno(), 1) == b"x"
        child.stdout.close()
        assert child.wait(HANG) == 0
        assert child.stderr.read() == b""


def test_when_nobody_reads_stdout_the_process_ends_quietly_in_a_stream(endpoint: Endpoint, engine: str) -> None:
    with connecting(endpoint.uds, CHARGEN, engine=engine) as child:
        assert read_exactly(child.stdout.fileno(), 100_000) == pattern(100_000)
        child.stdout.close()
        assert child.wait(HANG) == 0
        assert child.stderr.read() == b""


def test_a_stalled_consumer_stops_the_guest_and_loses_nothing(endpoint: Endpoint, engine: str) -> None:
    size = 8_000_000 if not endpoint.real else 4_000_000
    with connecting(endpoint.uds, COMMAND, engine=engine) as child:
        write_all(child.stdin.fileno(), b"source %d\n" % size)
        with pytest.raises(subprocess.TimeoutExpired):
            child.wait(1.5)
        assert read_exactly(child.stdout.fileno(), size + 1) == pattern(size)
        assert child.wait(HANG) == 0


def test_the_tail_survives_a_stalled_consumer_and_a_new_connection(endpoint: Endpoint, engine: str) -> None:
    # Without a forwarder 26,848 of 260,000 bytes are lost this way: test_protocol.py.
    size = 2_000_000
    with connecting(endpoint.uds, COMMAND, engine=engine) as child:
        write_all(child.stdin.fileno(), b"source %d\n" % size)
        time.sleep(3.5)  # the guest has closed long ago, and the VMM's deadline of 2 s has passed
        assert run(endpoint.uds, str(CLOSE)).returncode == 0
        assert read_exactly(child.stdout.fileno(), size + 1) == pattern(size)
        assert child.wait(HANG) == 0


def test_discard_answers_the_count_only_where_the_vmm_lets_it(endpoint: Endpoint, engine: str) -> None:
    # The half-close that tells `discard` to count is what makes a VMM drop the answer.
    done = run("--linger", "0.3", endpoint.uds, str(DISCARD), engine=engine, input=b"x" * 1000)
    assert (done.returncode, done.stdout) == (0, b"")


def test_four_at_once_do_not_mix(endpoint: Endpoint, engine: str) -> None:
    results: list[subprocess.CompletedProcess[bytes]] = []
    payloads = [bytes([65 + i]) * endpoint.size(1_600_000) for i in range(4)]

    def one(payload: bytes) -> None:
        request = b"sink %d\n" % len(payload)
        arguments = ("--linger", endpoint.linger, endpoint.uds, str(COMMAND))
        results.append(run(*arguments, engine=engine, input=request + payload))

    threads = [threading.Thread(target=one, args=(payload,)) for payload in payloads]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(done.stdout for done in results) == sorted(map(summary, payloads))


def test_the_guest_connects_to_the_host(endpoint: Endpoint) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        path = Path(f"{endpoint.uds}_5555")
        path.unlink(missing_ok=True)
        listener.bind(str(path))
        listener.settimeout(HANG)
        listener.listen()
        with connecting(endpoint.uds, COMMAND) as child:
            write_all(child.stdin.fileno(), b"back 5555 100000\n")
            connection, _ = listener.accept()
            with connection:
                assert read_exactly(connection.fileno(), 100_001) == pattern(100_000)
            assert child.stdout.read() == b"back ok\n"
            assert child.wait(HANG) == 0
        path.unlink()


def test_a_guest_that_calls_where_nobody_listens_is_refused(endpoint: Endpoint) -> None:
    done = run(endpoint.uds, str(COMMAND), input=b"back 5556 10\n")
    assert done.stdout.startswith(b"back ")
    assert done.stdout != b"back ok\n"


def test_wait_connects_as_soon_as_the_guest_is_up(endpoint: Endpoint, booting: tuple[str, list[str]]) -> None:
    uds, boot = booting
    with connecting(uds, ECHO, "--wait", str(HANG * 2)) as child:
        with pytest.raises(subprocess.TimeoutExpired):
            child.wait(1)  # nothing is there yet
        with started(boot, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as vmm:
            write_all(child.stdin.fileno(), b"up?")
            assert read_exactly(child.stdout.fileno(), 3) == b"up?"
            vmm.terminate()
            assert child.wait(HANG) in (0, 1)


def test_stats_are_one_line_on_stderr(endpoint: Endpoint, engine: str) -> None:
    done = run("--stats", endpoint.uds, str(SOURCE), engine=engine)
    line = done.stderr.decode()
    assert line.count("\n") == 1
    assert line.startswith("fastvsock: up 0 bytes, 0.0 MiB/s, ")
    assert f"down {SOURCE_SIZE} bytes" in line
    assert f"MiB/s, {engine};" in line
    assert "CPU" in line
