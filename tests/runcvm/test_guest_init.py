"""The edit to the scripts that RunCVM starts in the guest: known shapes are run by a shell, unknown ones stay."""

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from fastvsock.runcvm.guest_init import AGENT, start_agent
from fastvsock.runcvm.script_edits import Unknown
from support import HANG
from support.bundles import INITS, SHELL_SCRIPTS
from support.guests import until

GUEST = "/.runcvm/guest"
FORWARD = {"unquoted": "--forward 22=localhost:22222"}
# A guest's programs: each writes down that it was called; the agent ends three times, and then stays a while.
PROGRAM = """#!/bin/sh
echo "${0##*/} $*" >> "$CALLS"
"""
AGENT_PROGRAM = """#!/bin/sh
[ "$2" = --version ] && exit $VERSION_STATUS
echo "${0##*/} $*" >> "$CALLS"
[ "$(grep -c -- --forward "$CALLS")" -lt 3 ] && exit 1
kill $PPID
"""


def init_script(shape: str) -> str:
    """A script that starts socat in the guest, of that shape."""
    return (SHELL_SCRIPTS / f"init/{shape}.sh").read_text()


def begin(text: str) -> str:
    """The part of a script that runs in the guest, to where socat has been started."""
    document = re.search(r"<<-?\s*(?P<quote>'?)(?:INIT|END)\b'?\n(?P<body>.*?)^\t*(?:INIT|END)$", text, re.S | re.M)
    body = document["body"] if document else text
    if document and not document["quote"]:
        body = body.replace("$TOOLS", GUEST).replace("\\$", "$")
    return re.split(r"(?m)^(?:ip link set lo up\nINIT|/.*dropbear|exec )", body)[0]


def run_guest(text: str, folder: Path, status: int) -> list[str]:
    """What a guest calls that boots with a script: socat, the agent. The agent's `--version` ends with `status`."""
    tools = folder / "guest"
    for name in ("bin", "usr/bin"):
        (tools / name).mkdir(parents=True)
    for name in ("bin/fastvsock", "usr/bin/socat", "bin/hostname", "bin/mount", "bin/ip"):
        (tools / name).write_text(AGENT_PROGRAM if "fastvsock" in name else PROGRAM)
        (tools / name).chmod(0o755)
    console, calls = folder / "console", folder / "calls"
    calls.touch()
    script = begin(text).replace(GUEST, str(tools)).replace("/dev/console", str(console))
    shell = str(shutil.which("dash") or shutil.which("sh"))
    environment = {
        "PATH": f"{tools}/bin:{tools}/usr/bin:{os.environ['PATH']}",
        "CALLS": str(calls),
        "VERSION_STATUS": str(status),
    }
    # A pause of the agent's loop takes no time; another one ends the loop that it is in.
    command = [shell, "-c", f'sleep() {{ [ "$1" = 1 ] || exit; }}\n{script}\nwait']
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=HANG, check=False)
    assert "not found" not in done.stderr

    def started() -> list[str]:
        return [line for line in calls.read_text().splitlines() if re.match("socat|fastvsock", line)]

    until(lambda: bool(started()))  # a socat in the background may be late
    return started()


@pytest.mark.parametrize("shape", INITS)
def test_a_guest_with_the_binary_starts_the_agent_in_socats_place_and_again_when_it_ends(
    shape: str, tmp_path: Path
) -> None:
    found = run_guest(start_agent(init_script(shape)), tmp_path, 0)
    assert found == [f"fastvsock agent {FORWARD.get(shape, '--forward 22=127.0.0.1:22222')}"] * 3


@pytest.mark.parametrize("shape", INITS)
@pytest.mark.parametrize("status", [2, 126], ids=["one of an earlier release", "one that does not run"])
def test_a_guest_without_one_that_works_starts_socat_as_before(shape: str, status: int, tmp_path: Path) -> None:
    before = run_guest(init_script(shape), tmp_path / "before", status)
    assert [line.split()[0] for line in before] == ["socat"]
    assert run_guest(start_agent(init_script(shape)), tmp_path / "after", status) == before


@pytest.mark.parametrize("shape", INITS)
def test_the_edit_only_adds_lines_and_is_made_once(shape: str) -> None:
    old = init_script(shape)
    new = start_agent(old)
    assert start_agent(new) == new
    added = [line for line in new.splitlines() if line not in old.splitlines()]
    kept = new.splitlines()
    for line in added:
        kept.remove(line)
    ends = 2 if shape in ("alone", "unquoted") else 1  # of `if`, and of `else`
    assert len(new.splitlines()) == len(old.splitlines()) + 7 + ends - 1
    assert [line for line in kept if line.strip() not in ("fi", "else")] == [
        line for line in old.splitlines() if line.strip() not in ("fi", "else")
    ]
    assert not re.search(r"[$`\\]", "\n".join(added)), "a here-document without quotes would change it"


SOCAT = "socat VSOCK-LISTEN:22,fork TCP:127.0.0.1:22222 &\n"
UNKNOWN = {
    "another target": SOCAT.replace("TCP:127.0.0.1:22222", "EXEC:/bin/sh"),
    "a list of commands": f"true && {SOCAT}",
    "a pipeline": SOCAT.replace(" &", " | cat &"),
    "a branch in one line": f"if [ -e /x ]\nthen {SOCAT}fi\n",
    "a condition": f"if {SOCAT[:-2]}; then :; fi\n",
    "a command in the words": SOCAT.replace("127.0.0.1", "$(address)"),
    "line ends of another system": SOCAT.replace("\n", "\r\n"),
    "a program that leaves it in the background": f"setsid -f {SOCAT[:-3]}\n",
    "another command in its line": f"{SOCAT[:-1]} echo started\n",
    "a line of inittab(5)": f"::respawn:/usr/bin/{SOCAT[:-3]}\n",
    "a line of a service's file": f"ExecStart=/usr/bin/{SOCAT[:-3]}\n",
    "a line of another language": f"command: {SOCAT}",
    "a command that edits a script": f"sed -i '2i {SOCAT[:-1]}' /init\n",
}


@pytest.mark.parametrize("what", UNKNOWN)
def test_a_script_that_starts_socat_in_an_unknown_way_is_not_edited(what: str) -> None:
    with pytest.raises(Unknown):
        start_agent(UNKNOWN[what])


DOCUMENT = init_script("document")
OTHER_SPELLINGS = {
    "a comment behind the parenthesis": DOCUMENT.replace("(\n  log", "(  # early\n  log"),
    "another name": DOCUMENT.replace("SOCAT", "socat_path"),
    "quotes": DOCUMENT.replace("$SOCAT VSOCK-LISTEN:22,fork TCP:", '"${SOCAT}" VSOCK-LISTEN:22,fork "TCP:').replace(
        "interval=0.5", 'interval=0.5"'
    ),
    "other blanks": DOCUMENT.replace("     $SOCAT VSOCK", "\t\t$SOCAT  -d -d \\\n\t\tVSOCK").replace(
        ") &", ")  &   # done"
    ),
    "options": DOCUMENT.replace("22,fork TCP", "22,reuseaddr,fork,backlog=128 TCP4"),
    "another place for its words": DOCUMENT.replace(">> /dev/console 2>&1", "</dev/null >>/dev/console 2>&1"),
}


@pytest.mark.parametrize("what", OTHER_SPELLINGS)
def test_other_spellings_of_the_same_are_edited_in_the_same_place(what: str) -> None:
    old = OTHER_SPELLINGS[what]
    assert old != DOCUMENT
    lines = start_agent(old).splitlines()
    opening = next(number for number, line in enumerate(lines) if line.startswith("("))
    assert lines[opening + 1].startswith("  # fastvsock:")
    assert lines[opening + 4] == f"      {AGENT} --forward 22=127.0.0.1:22222 || :"


IN_LINE = {
    "nohup and setsid": f"nohup setsid {SOCAT}",
    "exec": f"  exec {SOCAT[:-3]} 2>/dev/null\n",
    "variables of its environment": f"A=1 B='2' {SOCAT}",
    "a test before it": f"[ -x /bin/sh ] && {SOCAT}",
    "a group": f"{{ {SOCAT[:-3]}; }} >/dev/null &\n",
    "a subshell": f"( {SOCAT[:-3]} 2>/dev/null ) >/dev/null &\n",
    "a loop": f"while :; do {SOCAT[:-3]}; sleep 2; done &\n",
    "its number kept": f"{SOCAT[:-1]} SOCAT_PID=$!\necho $SOCAT_PID\n",
    "output to a file in a variable": f'LOG=/dev/null\n{SOCAT[:-2]} >> "$LOG" 2>&1 &\n',
    "ports in variables": "A=22 B=22222\n" + SOCAT.replace(":22,", ":$A,").replace(":22222", ":${B}"),
    "TCP-CONNECT": SOCAT.replace("TCP", "TCP4-CONNECT"),
    "a variable with another value by default": f"${{NONE:-socat}} {SOCAT[6:]}",
    "no newline": SOCAT[:-1],
    "branches": f"if [ -e /nowhere ]; then\n{SOCAT}elif :; then\n{SOCAT}else\n{SOCAT}fi\n",
    "another one behind a document": f"{SOCAT}wait; cat << END >/dev/null\nx\nEND\n{SOCAT.replace('socat', ':')}",
    "another one later": f"{SOCAT}wait\n{SOCAT.replace('socat', ':')}",
}


@pytest.mark.parametrize("what", IN_LINE)
def test_other_spellings_in_a_line_of_their_own_start_the_agent_or_else_socat(what: str, tmp_path: Path) -> None:
    new = start_agent(IN_LINE[what])
    agent = "fastvsock agent --forward 22=127.0.0.1:22222"
    assert run_guest(new, tmp_path / "agent", 0) == [agent] * 3
    assert [line.split()[0] for line in run_guest(new, tmp_path / "socat", 2)][:1] == ["socat"]


def test_each_of_two_documents_has_the_agent() -> None:
    documents = "".join(f"cat > /{name} << 'END'\n{SOCAT}END\n" for name in "ab")
    assert start_agent(documents).count(f"{AGENT} --forward 22=") == 2


def test_a_subshell_that_does_more_is_left_as_it_is_around_the_line_of_socat() -> None:
    more = init_script("script").replace("\tSOCAT=", "\tmodprobe vsock\n\tSOCAT=", 1)
    new = start_agent(more)
    before, _, after = new.partition("\t\t# fastvsock:")
    assert before == more[: len(before)]
    assert before.rstrip().endswith("then")
    assert f"{AGENT} --forward 22=127.0.0.1:22222 || :\n" in after
