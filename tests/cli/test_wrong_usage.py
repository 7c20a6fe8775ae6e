"""Every command ends with the exit status of wrong usage where a port, an engine or a path cannot be meant."""

import os

import pytest

from support.umbrella import run

PORT_PLACES = {
    "agent": ["--listen", "unix:{uds}", "--port={port}"],
    "agent --forward": ["--listen", "unix:{uds}", "--forward={port}=127.0.0.1:22"],
    "bench": ["--uds", "{uds}", "--port={port}"],
    "connect": ["{uds}", "{port}"],
    "doctor": ["{uds}", "{port}"],
    "emulate": ["{uds}", "--echo={port}"],
    "emulate --exec": ["{uds}", "--exec={port}=true"],
    "emulate --tcp": ["{uds}", "--tcp={port}=127.0.0.1:22"],
    "forward": ["{uds}", ":22", "--port={port}"],
    "listen": ["{uds}", "{port}"],
    "proxy": ["{uds}", "{port}"],
    "runcvm check": ["check", "{uds}", "{port}"],
    "cp": ["{uds}", "x", ":x", "--port={port}"],
    "exec": ["--port={port}", "{uds}", "true"],
}
UDS_PLACES = {
    "connect": ["", "7"],
    "doctor": [""],
    "emulate": [""],
    "forward": ["", ":22"],
    "listen": ["", "7"],
    "proxy": ["", "7"],
    "cp": ["", "x", ":x"],
    "exec": ["", "true"],
}
ENGINE_PLACES = {
    "agent": ["--listen", "unix:{uds}"],
    "forward": ["{uds}", ":22"],
    "listen": ["{uds}", "7"],
    "proxy": ["{uds}", "7"],
}


def status_of(name: str) -> int:
    return 125 if name in ("cp", "exec") else 2  # below 125 the status is that of the command, or of the copy


@pytest.mark.parametrize("port", ["foo", "4294967296", "-1"])
@pytest.mark.parametrize("name", PORT_PLACES)
def test_a_wrong_port_is_wrong_usage(name: str, port: str, tmp_path: os.PathLike[str]) -> None:
    uds = os.path.join(tmp_path, "v.sock")
    words = [word.format(uds=uds, port=port) for word in PORT_PLACES[name]]
    done = run(name.split()[0], *words)
    assert (done.returncode, done.stdout) == (status_of(name), b"")
    assert f"invalid guest port '{port}': expected a number from 0 to 4294967295" in done.stderr.decode()


@pytest.mark.parametrize("name", ENGINE_PLACES)
def test_an_unknown_engine_is_wrong_usage_wherever_its_name_comes_from(name: str, tmp_path: os.PathLike[str]) -> None:
    words = [word.format(uds=os.path.join(tmp_path, "v.sock")) for word in ENGINE_PLACES[name]]
    done = run(name, *words, env=os.environ | {"FASTVSOCK_ENGINE": "warp"})
    assert (done.returncode, done.stdout) == (2, b"")
    assert b"unknown engine 'warp' (from FASTVSOCK_ENGINE): use auto, splice or copy" in done.stderr
    done = run(name, *words, "--engine", "warp")
    assert (done.returncode, done.stdout) == (2, b"")
    assert b"'warp'" in done.stderr


@pytest.mark.parametrize("name", UDS_PLACES)
def test_an_empty_path_of_the_socket_is_wrong_usage(name: str) -> None:
    done = run(name, *UDS_PLACES[name])
    assert (done.returncode, done.stdout) == (status_of(name), b"")
    assert b"empty" in done.stderr


@pytest.mark.parametrize(
    ("words", "what"),
    [
        ("agent --fast", "unknown option --fast"),
        ("agent x", "unexpected argument x"),
        ("bench --fast", "unknown option --fast"),
        ("bench x", "unexpected argument x"),
        ("connect --fast u 7", "unknown option --fast"),
        ("cp --fast u x :x", "unknown option --fast"),
        ("doctor --fast", "unknown option --fast"),
        ("doctor u 7 x", "unexpected argument x"),
        ("emulate --fast u", "unknown option --fast"),
        ("emulate u x", "unexpected argument x"),
        ("exec --fast u true", "unknown option --fast"),
        ("forward --fast u :22", "unknown option --fast"),
        ("listen --fast u 7", "unknown option --fast"),
        ("listen u 7 x", "unexpected argument x"),
        ("proxy --fast u 7", "unknown option --fast"),
        ("proxy u 7 x", "unexpected argument x"),
        ("runcvm check --fast", "unknown option --fast"),
        ("runcvm check u 7 x", "unexpected argument x"),
        ("runcvm install --fast", "unknown option --fast"),
        ("runcvm manifest --image x --fast", "unknown option --fast"),
        ("runcvm uninstall x", "unexpected argument x"),
    ],
)
def test_what_a_command_does_not_know_is_named_and_its_usage_shown(words: str, what: str) -> None:
    first, second = words.split()[:2]
    name = f"{first} {second}" if first == "runcvm" else first
    done = run(*words.split())
    assert (done.returncode, done.stdout) == (status_of(first), b"")
    reported, usage = done.stderr.decode().splitlines()
    assert reported == f"fastvsock: {what}"
    assert usage.startswith(f"usage: fastvsock {name} ")
    assert usage.endswith(f" (fastvsock {name} --help explains)")
