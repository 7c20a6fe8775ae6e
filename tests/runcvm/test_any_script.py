"""RunCVM's scripts with anything done to them: shells that read them read them after an edit, which can be undone."""

import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fastvsock.runcvm import channel_edit, guest_init, script_edits, shell
from fastvsock.runcvm.script_edits import Unknown
from support import HANG
from support.bundles import ALIASES, INITS, SHAPES, SHELL_SCRIPTS, exec_script, runcvm, snapshot
from support.installing import install_now, small

SHELLS = (["bash"], ["dash"], ["busybox", "sh"])
LINES = st.sampled_from(
    [
        *(
            "# it's",
            "",
            "   \t",
            ":",
            "set -x",
            "log INFO 'on'",
            'echo "$PROXY_PORT" >&2',
            "A=1",
            "export A B=2",
            "wait",
        ),
        *("if [ -n socat ]; then", "elif :; then", "else", "fi", "for a in b; do", "done", "(", ") &", "}", ";;"),
        *("cat << END", "cat <<- 'INIT'", "END", "INIT", "'", '"', "`", "\\", "$(", "x() {"),
        *("socat VSOCK-LISTEN:22,fork TCP:127.0.0.1:22222 &", "nohup socat VSOCK-LISTEN:22 TCP:a:1 >/dev/null 2>&1 &"),
        *("exec dbclient -p $PROXY_PORT root@127.0.0.1 x", "PROXY_PORT=1", "trap 'kill $!' EXIT", "sleep 1"),
    ]
)
DEEDS: list[Callable[[list[str], int, str], list[str]]] = [
    lambda lines, at, line: [*lines[:at], line, *lines[at:]],
    lambda lines, at, line: [*lines[:at], *lines[at + 1 :]],
    lambda lines, at, line: [*lines[:at], *lines[at : at + 1] * 2, *lines[at + 1 :]],
    lambda lines, at, line: [*lines[:at], *(f"\t {line}" for line in lines[at : at + 3]), *lines[at + 3 :]],
    lambda lines, at, line: [*lines[:at], "; ".join(lines[at : at + 2]), *lines[at + 2 :]],
    lambda lines, at, line: [*lines[:at], *(f"{line}  # it's {line}" for line in lines[at : at + 1]), *lines[at + 1 :]],
    lambda lines, at, line: [*lines[:at], *(line.replace(" ", " \\\n", 1) for line in lines[at:])],
    lambda lines, at, line: lines[:at],
]
CHANGES = st.lists(st.tuples(st.sampled_from(DEEDS), st.integers(0, 70), LINES), max_size=4)
ENDINGS = st.sampled_from([("\n", "\n"), ("\n", ""), ("\r\n", "\r\n")])
EXECS = list(map(exec_script, SHAPES))
STARTS = [(SHELL_SCRIPTS / f"init/{name}.sh").read_text() for name in INITS]
STARTS.append("#!/bin/sh\nsocat VSOCK-LISTEN:22,fork TCP:127.0.0.1:22222 &\n")
DEFAULTS = [(SHELL_SCRIPTS / f"defaults/{name}.sh").read_text() for name in ALIASES]


def changed(texts: list[str]) -> st.SearchStrategy[str]:
    """One of the scripts, with some changes and other ends of lines."""

    def change(text: str, changes: list[tuple[Callable[..., list[str]], int, str]], ends: tuple[str, str]) -> str:
        lines = text.splitlines()
        for deed, at, line in changes:
            lines = deed(lines, at, line)
        return ends[0].join(lines) + ends[1]

    return st.builds(change, st.sampled_from(texts), CHANGES, ENDINGS)


def tried(examples: int) -> settings:
    """Settings for so many examples, the same in each run."""
    checks = [HealthCheck.too_slow, HealthCheck.function_scoped_fixture]
    return settings(max_examples=examples, deadline=None, database=None, derandomize=True, suppress_health_check=checks)


def is_read(words: list[str], text: str) -> bool:
    """Whether a shell finds no fault in the syntax of a script."""
    done = subprocess.run([*words, "-n"], input=text, text=True, capture_output=True, timeout=HANG, check=False)
    return not done.returncode


def check_edit(text: str, edit: Callable[[str], str]) -> None:
    """An edit, if it is made, breaks neither the script nor a script in it, and does nothing a second time."""
    try:
        new = edit(text)
    except Unknown:
        return
    assert edit(new) == new
    for words in SHELLS:
        for before, after in zip([text, *shell.documents(text)], [new, *shell.documents(new)], strict=True):
            assert before == after or not is_read(words, before) or is_read(words, after), words


@tried(100)
@given(changed(STARTS))
def test_a_guests_script_is_read_by_each_shell_that_read_it_before(text: str) -> None:
    check_edit(text, guest_init.start_agent)


@pytest.mark.parametrize("proxy", [False, True])
def test_an_exec_script_is_read_by_each_shell_that_read_it_before(proxy: bool) -> None:
    def edit(text: str) -> str:
        return channel_edit.use_channel(script_edits.end_proxy(text, proxy, binary=True))

    tried(40)(given(changed(EXECS))(lambda text: check_edit(text, edit)))()


@tried(12)
@given(*(changed(texts).map(str.encode) | st.binary(max_size=40) for texts in (EXECS, STARTS, DEFAULTS)))
def test_uninstall_restores_every_byte_of_any_script(
    bundle: Path, execs: bytes, starts: bytes, defaults: bytes
) -> None:
    (bundle / "scripts/docker").mkdir(exist_ok=True)
    (bundle / "scripts/runcvm-ctr-exec").write_bytes(execs)
    (bundle / "scripts/docker/firecracker-init.sh").write_bytes(starts)
    (bundle / "scripts/runcvm-ctr-defaults").write_bytes(defaults)
    before = snapshot(bundle)
    install_now(bundle, small())
    assert snapshot(bundle) != before
    assert runcvm("uninstall", bundle).returncode == 0
    assert snapshot(bundle) == before
