"""The edits to RunCVM's scripts: known shapes run by bash before and after, unknown ones are not touched."""

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from fastvsock.runcvm.script_edits import Unknown, add_aliases, end_proxy
from support import HANG
from support.bundles import ALIASES, RECORD, SHAPES, SHELL_SCRIPTS, called, exec_script, make_bundle, put

WAIT = "10"
NEEDED = ("tar", "sh", "tail")
GUEST_PORT = {"fork": "22", "continued": "22", "global-proxy": "22"}


@pytest.mark.parametrize("proxy", [False, True])
@pytest.mark.parametrize("shape", SHAPES)
def test_an_edited_exec_script_calls_dbclient_with_the_same_words_but_for_the_port(
    shape: str, proxy: bool, tmp_path: Path
) -> None:
    bundle = make_bundle(tmp_path / "bundle", shape, python="lib/ld" in exec_script(shape))
    before = called(bundle, tmp_path / "record")
    assert before[before.index("-p") + 1].isdigit()
    put(bundle / "scripts/runcvm-ctr-exec", end_proxy(exec_script(shape), proxy), 0o755)
    for name in ("fastvsock", "runcvm-vsock-connect"):
        put(bundle / "scripts" / name, RECORD, 0o755)
    (bundle / "usr/bin/socat").unlink()
    after = called(bundle, tmp_path / "record")
    port, start = before.index("-p"), after.index("--")
    transport = ["--wait", WAIT, "/run/firecracker.vsock", GUEST_PORT.get(shape, "22222")]
    assert after[:start] == [*["proxy"] * proxy, *transport]
    assert after[start + 1] == f"{bundle}/usr/bin/dbclient"
    way = ["-p", "{port}"] if proxy else ["-J", "&3"]
    assert after[start + 2 :] == [*before[:port], *way, *before[port + 2 :]]


def test_a_dbclient_that_may_be_a_function_gets_the_transport_as_its_child(tmp_path: Path) -> None:
    bundle = make_bundle(tmp_path / "bundle")
    before = called(bundle, tmp_path / "record")
    put(bundle / "scripts/runcvm-ctr-exec", end_proxy(FORK.replace('exec "$DBCLIENT_BIN"', "dbclient", 1)), 0o755)
    (bundle / "usr/bin/socat").unlink()
    after = called(bundle, tmp_path / "record")
    port = before.index("-p")
    assert after[: port + 1] == [*before[:port], "-J"]
    assert after[port + 2 :] == before[port + 2 :]
    transport = [f"{bundle}/scripts/runcvm-vsock-connect", "--wait", WAIT, "/run/firecracker.vsock", "22"]
    assert shell_words(after[port + 1]) == transport


def test_a_path_that_needs_quoting_stays_one_word(tmp_path: Path) -> None:
    bundle = make_bundle(tmp_path / "bundle")
    folder = tmp_path / "it's a $place; *\""
    folder.mkdir()
    put(folder / "runcvm-vsock-connect", RECORD, 0o755)
    odd = FORK.replace('VSOCK_CONNECT_BIN="$RUNCVM_GUEST/scripts/', 'VSOCK_CONNECT_BIN="$PLACE/')
    assert odd != FORK
    put(bundle / "scripts/runcvm-ctr-exec", end_proxy(odd), 0o755)
    words = called(bundle, tmp_path / "record", PLACE=str(folder))
    assert words[:5] == ["--wait", WAIT, "/run/firecracker.vsock", "22", "--"]
    function = end_proxy(odd.replace('exec "$DBCLIENT_BIN"', "dbclient", 1))
    put(bundle / "scripts/runcvm-ctr-exec", function, 0o755)
    words = called(bundle, tmp_path / "record", PLACE=str(folder))
    transport = [f"{folder}/runcvm-vsock-connect", "--wait", WAIT, "/run/firecracker.vsock", "22"]
    assert shell_words(words[words.index("-J") + 1]) == transport


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
    head = (SHELL_SCRIPTS / "exec/head.sh").read_text()
    assert new.startswith(head)
    if shape == "fork":
        assert new.endswith(old[old.index("else\n   exec") :])
    if shape == "bash-22222":
        assert 'log_debug "about to start dbclient"' in new


FORK = exec_script("fork")
GLOBAL = exec_script("global-proxy")
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
    **{
        f"a line that sets more, {number}": FORK.replace("   PROXY_PORT=$(( 30000 + RANDOM % 10000 ))", f"   {line}")
        for number, line in enumerate(
            (
                "PROXY_PORT=$((30000 + RANDOM % 10000)); export FOO=bar",
                "PROXY_PORT=33333 && export FOO=bar",
                "PROXY_PORT=33333 KEY=/k",
                "export PROXY_PORT=33333 KEY=/k",
                "local PROXY_PORT=33333 KEY=/k",
                "PROXY_PORT=33333; (cd /; make)",
                'PROXY_PORT=33333; echo "it\'s"; FOO=bar; echo "that\'s"',
            )
        )
    },
    **{
        f"a trap that does more, {number}": FORK.replace("trap 'kill $PROXY_PID 2>/dev/null' EXIT", line)
        for number, line in enumerate(
            (
                "trap 'kill $PROXY_PID; rm -f \"$TMP\"' EXIT",
                "trap 'kill $PROXY_PID' TERM; FOO=bar; trap 'kill $PROXY_PID' EXIT",
                "trap 'kill $(cat /run/pid)' EXIT",
            )
        )
    },
    "a line of the log that does more": FORK.replace("   sleep 0.1", '   sleep 0.1\n   log "on $PROXY_PORT"; FOO=bar'),
    "its pid used elsewhere": FORK.replace('vsock 22" &\n   PROXY_PID=$!', 'vsock 22" & NUMBER=$!') + "wait $NUMBER\n",
    "the log of the log": FORK.replace("   sleep 0.1", "   sleep 0.1\n   log on >/run/log"),
    "socat's variable and more": FORK.replace('SOCAT_BIN="socat"\n', 'SOCAT_BIN="socat" FOO=bar\n', 1),
    "a choice by socat's name": FORK.replace(
        "   sleep 0.1", '   sleep 0.1\n   if [ "$TRANSPORT" != socat ]; then exit 9; fi'
    ),
    "a search for socat that does more": FORK.replace(
        'SOCAT_BIN="/.runcvm/guest/usr/bin/socat"', 'SOCAT_BIN="/.runcvm/guest/usr/bin/socat"; FOO=bar'
    ),
    "a search for socat in one line that does more": FORK.replace(
        "   sleep 0.1", '   sleep 0.1\n   if [ -z "$SOCAT_BIN" ]; then FOO=bar; SOCAT_BIN=socat; fi'
    ),
    **{
        f"the client uses it, {number}": FORK.replace("-y -y -i $key root@127.0.0.1", words)
        for number, words in enumerate(
            (
                "-y -y -o port=$PROXY_PORT -i $key root@127.0.0.1",
                "-y -y -i /key$PROXY_PID root@127.0.0.1",
                "-y -y -i /key${#PROXY_PORT} root@127.0.0.1",
            )
        )
    },
    "a global proxy without a branch for vsock": GLOBAL.replace("USE_VSOCK", "USE_PROXY"),
    "a global proxy on another machine": GLOBAL.replace("root@127.0.0.1", "root@10.0.0.2"),
    "a global proxy that is used elsewhere": GLOBAL + 'echo "$PROXY_PORT"\n',
    "a global proxy behind more": GLOBAL.replace('  log_debug "gl', '  touch /run/started\n  log_debug "gl'),
    "a shell that does more": exec_script("quotes-22222").replace("'exec python3", "'cd /; exec python3"),
    "no bash": FORK.replace("bin/bash -e", "bin/sh -e", 1),
    "line ends of another system": FORK.replace("\n", "\r\n"),
    "nothing": "",
}


@pytest.mark.parametrize(
    ("ports", "port"), [((), "22222"), (("22",), "22"), (("22", "22222"), "22222"), (("1", "2"), "22222")]
)
def test_the_port_is_the_one_where_the_guest_listens(ports: tuple[str, ...], port: str) -> None:
    assert f"/run/firecracker.vsock {port} -- " in end_proxy(exec_script("quotes-22222"), ports=ports)


@pytest.mark.parametrize("what", UNKNOWN)
def test_an_exec_script_of_unknown_shape_is_not_edited(what: str) -> None:
    assert UNKNOWN[what] != FORK
    with pytest.raises(Unknown):
        end_proxy(UNKNOWN[what])


OTHER_SPELLINGS = {
    "a pause by path": FORK.replace("sleep 0.1", "/bin/sleep 1s"),
    "a trap for more signals": FORK.replace("2>/dev/null' EXIT", "2>/dev/null || true' EXIT INT SIGTERM"),
    "a search for socat in one line": FORK.replace(
        "   sleep 0.1", '   sleep 0.1\n   if [ -z "$SOCAT_BIN" ]; then SOCAT_BIN=socat; fi'
    ),
    "comments behind the code": FORK.replace("   PROXY_PID=$!", "   PROXY_PID=$!  # 'its pid; see below"),
    "quotes around the pid": FORK.replace("PROXY_PID=$!", 'readonly PROXY_PID="$!"'),
    "a signal by name": FORK.replace("kill $PROXY_PID", 'kill -TERM "$PROXY_PID"'),
    "a job that is let go": FORK.replace("   sleep 0.1", "   disown $PROXY_PID\n   usleep 100000"),
    "words about the proxy": FORK.replace("   sleep 0.1", '   echo "on $PROXY_PORT" >&2\n   sleep 0.1'),
    "two in one line": FORK.replace("   PROXY_PID=$!\n", "   PROXY_PID=$!; sleep 0.1\n"),
    "its pid in socat's own line": FORK.replace('vsock 22" &\n   PROXY_PID=$!', 'vsock 22" & PROXY_PID=$!'),
    "a session of its own": FORK.replace("   $SOCAT_BIN TCP", "   nohup setsid $SOCAT_BIN TCP"),
    "its words in a file": FORK.replace('vsock 22" &', 'vsock 22" >> "/tmp/socat.log" 2> /dev/null < /dev/null &'),
    "a job that is let go by any means": FORK.replace("   sleep 0.1", "   disown 2>/dev/null || true\n   sleep 0.1"),
    "a pause by busybox": FORK.replace("   sleep 0.1", "   $RUNCVM_GUEST/bin/busybox sleep 0.1"),
    "a pause by the bundle's program": FORK.replace("   sleep 0.1", "   $RUNCVM_GUEST/bin/sleep 0.1"),
    "a number": FORK.replace("   PROXY_PORT=$((", "   declare -i PROXY_PORT=$(("),
}


@pytest.mark.parametrize("what", OTHER_SPELLINGS)
def test_other_spellings_of_the_same_block_give_the_same_script(what: str) -> None:
    assert OTHER_SPELLINGS[what] != FORK
    assert end_proxy(OTHER_SPELLINGS[what]) == end_proxy(FORK)


@pytest.mark.parametrize(
    "line",
    [
        'log_debug "could use dbclient -J one day"',
        'echo "usage: dbclient -J CMD"',
        "dbclient -p 22222 root@10.0.0.2 tar -J -xf -",
        'DBCLIENT_OPTS=" -J"',
        'dbclient -p 22222 root@10.0.0.2 "tar -J xf"',
    ],
)
def test_a_word_of_dbclient_and_its_option_is_not_taken_for_the_edit(line: str) -> None:
    with pytest.raises(Unknown, match="no socat that listens"):
        end_proxy(f"#!/bin/bash\n{line}\n")


@pytest.mark.parametrize(
    "line",
    [
        'exec "$DBCLIENT_BIN" -t -J "$VSOCK_CONNECT_BIN u 22" root@guest "$command"',
        "dbclient -J '&3' root@guest",
        'exec "$VSOCK_CONNECT_BIN" u 22 -- "$DBCLIENT_BIN" "${opts[@]}" -J \'&3\' root@guest "$command"',
        'exec $BASH "$RUNCVM_GUEST/scripts/fastvsock" proxy u 22 -- "$DBCLIENT_BIN" -p {port} root@guest "$command"',
    ],
)
def test_a_dbclient_with_a_transport_of_its_own_is_left_as_it_is(line: str) -> None:
    text = f"#!/bin/bash\n{line}\n"
    assert end_proxy(text) == text


def test_a_function_named_dbclient_cannot_be_given_to_the_proxy() -> None:
    text = FORK.replace('exec "$DBCLIENT_BIN"', "dbclient", 1)
    assert "-J" in end_proxy(text)
    with pytest.raises(Unknown, match="only a shell can call"):
        end_proxy(text, proxy=True)


@pytest.mark.parametrize("name", ALIASES)
def test_what_kubectl_cp_needs_becomes_words_of_the_list_and_functions_that_work(name: str, tmp_path: Path) -> None:
    bundle = make_bundle(tmp_path / "bundle", aliases=name)
    for applet in ("tar", "tail"):
        (bundle / "bin" / applet).symlink_to("busybox")
    script = bundle / "scripts/runcvm-ctr-defaults"
    old = script.read_text()
    new = add_aliases(old, NEEDED)
    assert new.replace(" tail", "", 1).replace(" tar", "", 1).replace("" if " sh " in old else " sh", "", 1) == old
    assert add_aliases(new, NEEDED) == new
    ask = (
        "set -e; . $RUNCVM_GUEST/scripts/runcvm-ctr-defaults; type tar sh tail; tar --help 2>&1 | cat; "
        "[ $(sh -c 'echo abc | tail -c+2') = bc ]"
    )
    for text, there in ((old, False), (new, True)):
        script.write_text(text)
        command = [str(shutil.which("bash")), "-c", ask]
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
        "create_aliases() {\n  for cmd in bash busybox cat # the tools\n  do :; done\n}\n",
        "create_aliases() {\n  for cmd in bash busybox \\\n  # net tools\n  cat; do :; done\n}\n",
        "create_aliases() {\n  for cmd in busybox $(cat /list; echo x); do :; done\n}\n",
        "create_aliases() {\n  for cmd in busybox `cat /list`; do :; done\n}\n",
        "create_aliases() { :; }\nother() {\n  for cmd in busybox cat; do :; done\n}\n",
    ],
)
def test_a_defaults_script_of_unknown_shape_is_not_edited(text: str) -> None:
    with pytest.raises(Unknown):
        add_aliases(text, NEEDED)
