"""The edits to RunCVM's scripts: known shapes run by bash before and after, unknown ones are not touched."""

import re
import shutil
import subprocess
from pathlib import Path

import pytest
from runcvm.bundles import ALIASES, HERE, RECORD, SHAPES, called, exec_script, make_bundle, put

from fastvsock.runcvm.scripts import Unknown, add_alias, end_proxy
from support import HANG

GUEST_PORT = {"fork": "22", "continued": "22"}


@pytest.mark.parametrize("proxy", [False, True])
@pytest.mark.parametrize("shape", SHAPES)
def test_an_edited_exec_script_calls_dbclient_with_the_same_words_but_for_the_port(
    shape: str, proxy: bool, tmp_path: Path
) -> None:
    bundle = make_bundle(tmp_path / "bundle", shape, python="lib/ld" in exec_script(shape))
    before = called(bundle, tmp_path / "record")
    assert before[before.index("-p") + 1].isdigit()
    put(bundle / "scripts/runcvm-ctr-exec", end_proxy(exec_script(shape), proxy), 0o755)
    put(bundle / "scripts/fastvsock", RECORD, 0o755)
    (bundle / "usr/bin/socat").unlink()
    after = called(bundle, tmp_path / "record")
    port = before.index("-p")
    if proxy:
        start = after.index("--")
        assert after[:start] == ["proxy", "/run/firecracker.vsock", GUEST_PORT.get(shape, "22222")]
        assert after[start + 1] == f"{bundle}/usr/bin/dbclient"
        assert after[start + 2 :] == [*before[: port + 1], "{port}", *before[port + 2 :]]
        return
    assert after[:port] == before[:port]
    assert after[port] == "-J"
    assert after[port + 2 :] == before[port + 2 :]
    words = shell_words(after[port + 1])
    assert words[-3:] == [
        f"{bundle}/scripts/runcvm-vsock-connect",
        "/run/firecracker.vsock",
        GUEST_PORT.get(shape, "22222"),
    ]


def test_a_path_that_needs_quoting_reaches_the_second_shell_as_one_word(tmp_path: Path) -> None:
    bundle = make_bundle(tmp_path / "bundle")
    odd = FORK.replace('BIN="$RUNCVM_GUEST/scripts/runcvm', 'BIN="/it\'s a \\$place; *"\'"\'"/scripts/runcvm')
    put(bundle / "scripts/runcvm-ctr-exec", end_proxy(odd), 0o755)
    words = called(bundle, tmp_path / "record")
    place = "/it's a $place; *\"/scripts/runcvm-vsock-connect"
    assert shell_words(words[words.index("-J") + 1]) == [place, "/run/firecracker.vsock", "22"]


def shell_words(command: str) -> list[str]:
    """What the shell that dbclient starts makes of the command."""
    script = f"printf '%s\\0' {command}"
    return (
        subprocess.run(["sh", "-c", script], capture_output=True, check=True, timeout=HANG)
        .stdout.decode()
        .split("\0")[:-1]
    )


@pytest.mark.parametrize("shape", SHAPES)
def test_nothing_of_the_proxy_is_left_and_nothing_outside_of_the_block_is_touched(shape: str) -> None:
    old = exec_script(shape)
    new = end_proxy(old)
    assert end_proxy(new) == new
    code = [line for line in new.splitlines() if not line.lstrip().startswith("#")]
    assert not re.search(r"socat|sleep|trap|RANDOM|shuf|PROXY_P", "\n".join(code))
    head = (HERE / "exec/head.sh").read_text()
    assert new.startswith(head)
    if shape == "fork":
        assert new.endswith(old[old.index("else\n   exec") :])
    if shape == "bash-22222":
        assert 'log_debug "about to start dbclient"' in new


FORK = exec_script("fork")
UNKNOWN = {
    "a loop that waits": FORK.replace("sleep 0.1\n", "until nc -z 127.0.0.1 $PROXY_PORT; do sleep 0.1; done\n"),
    "a trap that calls a function": FORK.replace("trap 'kill $PROXY_PID 2>/dev/null' EXIT", "trap cleanup EXIT"),
    "the port used elsewhere": FORK + 'echo "was $PROXY_PORT"\n',
    "no socat": FORK.replace("$SOCAT_BIN TCP-LISTEN", "ncat TCP-LISTEN"),
    "another program": FORK.replace("/runcvm-vsock-connect", "/my-transport"),
    "a transport of more words": FORK.replace("firecracker.vsock 22", "firecracker.vsock 22 --verbose"),
    "a command in the transport": FORK.replace("/run/firecracker.vsock 22", "$(uds) 22"),
    "an option of socat's EXEC": FORK.replace('vsock 22" &', 'vsock 22",pty &'),
    "single quotes that keep the $": FORK.replace(
        'EXEC:"$VSOCK_CONNECT_BIN /run/firecracker.vsock 22"', "EXEC:'$VSOCK_CONNECT_BIN /run/firecracker.vsock 22'"
    ),
    "two proxies": FORK.replace(
        "   PROXY_PID=$!", '   socat TCP-LISTEN:1 EXEC:"$VSOCK_CONNECT_BIN u 22" &\n   PROXY_PID=$!'
    ),
    "a line that does more": FORK.replace("   sleep 0.1", "   sleep 0.1\n   touch /run/started"),
    "another interpreter": FORK.replace('EXEC:"$', 'EXEC:"python2 $'),
    "no bash": FORK.replace("bin/bash -e", "bin/sh -e", 1),
    "nothing": "",
}


@pytest.mark.parametrize("what", UNKNOWN)
def test_an_exec_script_of_unknown_shape_is_not_edited(what: str) -> None:
    assert UNKNOWN[what] != FORK
    with pytest.raises(Unknown):
        end_proxy(UNKNOWN[what])


def test_a_function_named_dbclient_cannot_be_given_to_the_proxy() -> None:
    text = FORK.replace('exec "$DBCLIENT_BIN"', "dbclient", 1)
    assert "-J" in end_proxy(text)
    with pytest.raises(Unknown, match="only a shell can call"):
        end_proxy(text, proxy=True)


@pytest.mark.parametrize("name", ALIASES)
def test_tar_becomes_one_more_word_of_the_list_and_a_function_that_works(name: str, tmp_path: Path) -> None:
    bundle = make_bundle(tmp_path / "bundle", aliases=name)
    (bundle / "bin/tar").symlink_to("busybox")
    script = bundle / "scripts/runcvm-ctr-defaults"
    old = script.read_text()
    new = add_alias(old)
    assert new.replace(" tar", "", 1) == old
    assert add_alias(new) == new
    ask = "set -e; . $RUNCVM_GUEST/scripts/runcvm-ctr-defaults; {}; echo hi | cat; tar --help 2>&1 | cat"
    for text, there in ((old, False), (new, True)):
        script.write_text(text)
        command = [str(shutil.which("bash")), "-c", ask.format("type tar")]
        variables = {"RUNCVM_GUEST": str(bundle), "PATH": "/nowhere"}
        result = subprocess.run(command, env=variables, capture_output=True, text=True, timeout=HANG, check=False)
        assert ("tar is a function" in result.stdout and "BusyBox" in result.stdout) == there, result


@pytest.mark.parametrize(
    "text",
    [
        "",
        "create_aliases() {\n  :\n}\n",
        "# create_aliases() {\nfor cmd in bash busybox; do :; done\n",
        'create_aliases() {\n  for cmd in "${TOOLS[@]}"; do :; done\n}\n',
        "create_aliases() {\n  :\n}\nfor cmd in busybox cat; do :; done\n",
        "create_aliases() { for c in busybox; do :; done; }\n" * 2,
        "create_aliases() { :; }\nother() {\n  for cmd in busybox cat; do :; done\n}\n",
    ],
)
def test_a_defaults_script_of_unknown_shape_is_not_edited(text: str) -> None:
    with pytest.raises(Unknown):
        add_alias(text)
