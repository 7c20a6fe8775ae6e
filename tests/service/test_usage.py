"""What the services say of options that make no sense: a sentence with the range, and nothing has happened."""

import subprocess
import sys
from pathlib import Path

import pytest

from support import HANG
from support.services import FarEnd, run_proxy, service_command


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--stats-interval", "2592000"], "'2592000': expected a number of seconds more than 0 and at most 1000000"),
        (["--stats-interval", "0"], "'0': expected a number of seconds more than 0"),
        (["--timeout", "inf"], "'inf': expected a number of seconds more than 0"),
        (["--timeout", "1e30"], "'1e30': expected a number of seconds more than 0"),
        (["--timeout", "0"], "'0': expected a number of seconds more than 0"),
        (["--wait", "inf"], "'inf': expected a number of seconds from 0 to 1000000"),
        (["--grace", "nan"], "'nan': expected a number of seconds from 0 to 1000000 or inf"),
        (["--linger", "x"], "'x': expected a number of seconds from 0 to 1000000 or inf"),
        (["--grace", "-1"], "'-1': expected a number of seconds"),
        (["--max-connections", "0"], "'0': expected a number from 1 to 999999999"),
        (["--ready-fd", "x"], "'x': expected the number of a descriptor"),
        (["--port-file", ""], "the path is empty"),
    ],
)
def test_an_option_out_of_range_is_reported_with_the_range(arguments: list[str], words: str) -> None:
    done = subprocess.run(
        service_command("proxy", *arguments, "/v.sock", "7", "--", "echo", "started"),
        capture_output=True,
        timeout=HANG,
        check=False,
    )
    assert (done.returncode, done.stdout) == (2, b"")
    assert words in done.stderr.decode()


@pytest.mark.parametrize(
    "arguments",
    [
        ("proxy", "", "7"),
        ("proxy", "/v.sock", "7", "--", ""),
        ("listen", "", "7"),
        ("listen", "--unix", "", "/v.sock", "7"),
        ("listen", "--unix", "@", "/v.sock", "7"),
        ("listen", "--unix-datagram", "@", "/v.sock", "7"),
        ("listen", "--mode", "999", "/v.sock", "7"),
        ("listen", "/v.sock", "7", "--", ""),
    ],
)
def test_what_is_empty_or_no_mode_is_wrong_usage(arguments: tuple[str, ...]) -> None:
    done = subprocess.run(
        service_command(*arguments), stdin=subprocess.DEVNULL, capture_output=True, timeout=HANG, check=False
    )
    assert (done.returncode, done.stdout) == (2, b"")
    assert b"Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--mode", "660"], b"invalid --mode for 127.0.0.1:0: expected an address unix:PATH"),
        (["--mode", "999", "--listen", "unix:/x"], b"'999': expected three octal digits"),
        (["--metrics", "unix:/x"], b"invalid --metrics 'unix:/x': expected 127.0.0.1:PORT"),
        (["--metrics", "x"], b"invalid --metrics 'x': expected 127.0.0.1:PORT"),
        (["--listen", "x"], b"invalid --listen 'x': expected 127.0.0.1:PORT"),
    ],
)
def test_an_option_that_does_not_fit_is_reported_with_its_name(arguments: list[str], words: bytes) -> None:
    done = subprocess.run(
        service_command("proxy", *arguments, "/v.sock", "7"), capture_output=True, timeout=HANG, check=False
    )
    assert (done.returncode, done.stdout) == (2, b"")
    assert words in done.stderr


def test_braces_in_the_address_itself_are_no_placeholders(far_end: FarEnd, tmp_path: Path) -> None:
    listen = f"{tmp_path}/{{port}}.{{uds}}"
    done = run_proxy("--listen", f"unix:{listen}", far_end.uds, "7", "--", "echo", "{socket}", "{uds}=x")
    assert (done.returncode, done.stderr) == (0, b"")
    assert done.stdout.decode() == f"{listen} {listen}=x\n"


def test_the_names_of_the_first_version_still_work(far_end: FarEnd, tmp_path: Path) -> None:
    command = ("sh", "-c", "echo $0 $FASTVSOCK_UDS", "{uds}")
    done = run_proxy("--listen", f"unix:{tmp_path}/u", far_end.uds, "7", "--", *command)
    assert done.stdout.decode() == f"{tmp_path}/u {tmp_path}/u\n"


def test_a_placeholder_that_nothing_filled_in_is_reported() -> None:
    for words, said in ((["ssh -p {port}"], 1), (["{port}", "{port} {x}"], 0), (["{x} y"], 0)):
        done = subprocess.run(
            service_command("proxy", "/v.sock", "7", "--", "echo", *words),
            capture_output=True,
            timeout=HANG,
            check=True,
        )
        assert done.stderr.count(b"warning: {port} was left as is") == said


@pytest.mark.parametrize("words", [["proxy", "--", "true"], ["listen"]], ids=lambda words: words[0])
def test_threads_that_wait_for_the_interpreter_wake_up_rarely(
    words: list[str], far_end: FarEnd, tmp_path: Path
) -> None:
    # With Python's own 0.005 s, a thousand connections at once can keep a busy machine from doing anything else.
    run = "import sys; from fastvsock.cli import umbrella; umbrella.run(sys.argv[1:])"
    program = f"{run}; print(round(sys.getswitchinterval(), 3))"
    uds = far_end.uds if words[0] == "proxy" else str(tmp_path / "missing" / "v.sock")
    done = subprocess.run(
        [sys.executable, "-c", program, words[0], uds, "7", *words[1:]],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        timeout=HANG,
        check=False,
    )
    assert done.stdout == b"0.1\n", done.stderr
