"""Edits the scripts that RunCVM starts in the guest: the agent takes the place of their early socat. Text in, text out.

RunCVM's `/init` starts socat before the network, on the AF_VSOCK port that leads to dropbear. The agent joins that port
to dropbear too, and serves channels. It is started again if it ends. The test that comes first runs in the guest, since
a guest may be made of a cached root file system, in which the binary is missing or of an earlier release: there socat
is started, as before.

The text may be a here-document of the script that writes `/init`. What is inserted has no dollar sign, no backquote and
no backslash, and so means the same with quotes around the document's end mark and without.
"""

import re
from collections.abc import Iterable

from . import shapes, shell
from .binary import PROGRAM
from .script_edits import MARK, Unknown

AGENT = f"/.runcvm/guest/{PROGRAM} agent"  # where every guest has the bundle
LISTENING = re.compile(r"VSOCK-LISTEN:(\d+)", re.I)
OPTIONS = r"(?:,[\w.=-]+)*"
ADDRESSES = re.compile(
    rf"""["']?VSOCK-LISTEN:(?P<port>\d+){OPTIONS}["']?\s+["']?TCP4?:(?P<target>[\w.-]+:\d+){OPTIONS}["']?(?=\s|$)""",
    re.I,
)
PROGRAM_WORDS = re.compile(r"(?!(?:if|elif|while|until|then|else|do|time|case|!)\s)[^;&|<>()`#]+")
PATH = shapes.Command("value", "PATH")
NOT_RUN = re.compile(r"#|(?:log\w*|echo|printf)\s")
TAIL = re.compile(r"(?P<output>(?:\s*(?:[12]?>>?|&>>?|<)\s*(?:&[12]|[\w./-]+))*)\s*(?P<background>&?)\s*(?:#.*)?")


def guest_ports(scripts: Iterable[str]) -> set[str]:
    """The ports of AF_VSOCK where the guest listens, as the scripts that are run in it have them."""
    return {match for text in scripts for match in LISTENING.findall(text)}


def starts_socat(text: str) -> bool:
    """Whether a script starts socat on a port of AF_VSOCK, in the guest."""
    return any(map(_is_start, shell.statements(text)))


def starts_agent(text: str) -> bool:
    """Whether a script starts the agent in the guest."""
    return any(AGENT in item.code and not NOT_RUN.match(item.code) for item in shell.statements(text))


def _is_start(item: shell.Statement) -> bool:
    return bool(LISTENING.search(item.code)) and not NOT_RUN.match(item.code)


def start_agent(text: str) -> str:
    """`text` with the agent in socat's place, where it runs. Raises `Unknown` if socat is started in an unknown way."""
    if starts_agent(text):
        return text
    if "\r" in text:
        raise Unknown("it has carriage returns, with which no shell runs it")
    statements = list(shell.statements(text))
    found = [number for number, item in enumerate(statements) if _is_start(item)]
    if len(found) != 1:
        raise Unknown(f"it starts socat on a vsock port in {len(found)} places")
    item = statements[found[0]]
    addresses = ADDRESSES.search(item.code)
    if addresses is None:
        raise Unknown(f"socat joins a vsock port to something else than a TCP port: {item.code!r}")
    tail = TAIL.fullmatch(item.code, addresses.end())
    if tail is None or not PROGRAM_WORDS.fullmatch(item.code[: addresses.start()].strip()):
        raise Unknown(f"socat is part of a larger command: {item.code!r}")
    forward = f"--forward {addresses['port']}={addresses['target']}"
    opening = _subshell(statements, found[0])
    if opening is None:
        start = _lines(item, forward, f"done{tail['output']} {tail['background']}".rstrip(), "else", [item.text], "fi")
        return text[: item.start] + start + text[item.end :]
    inside = statements[opening + 1]
    return text[: inside.start] + _lines(inside, forward, f"done{tail['output']}", "fi") + text[inside.start :]


def _lines(place: shell.Statement, forward: str, *ending: str | list[str]) -> str:
    """The lines that start the agent, with the indent of `place`. A list in `ending` is text that stays as it is."""
    indent = re.match(r"[ \t]*", place.text)
    lead = indent.group() if indent else ""
    lines: list[str | list[str]] = [
        f"{MARK} its agent takes the place of socat, and is started again if it ends",
        f"if {AGENT} --version >/dev/null 2>&1; then",
        "  while :; do",
        f"    {AGENT} {forward} || :",
        "    sleep 1 || /.runcvm/guest/bin/busybox sleep 1 || break",
    ]
    lines += [f"  {ending[0]}", *ending[1:]]
    return "".join(line[0] if isinstance(line, list) else f"{lead}{line}\n" for line in lines)


def _subshell(statements: list[shell.Statement], socat: int) -> int | None:
    """The number of the line ``(`` that begins a subshell in the background which only looks for socat and starts it.

    The agent's loop can be the first thing in such a subshell, and then serves a guest without socat too.
    """
    around = re.compile(r"\(|\)")
    first = next((n for n in range(socat, -1, -1) if around.match(statements[n].code)), None)
    last = next((n for n in range(socat, len(statements)) if around.match(statements[n].code)), None)
    if first is None or last is None or not re.fullmatch(r"\(\s*(?:#.*)?", statements[first].code):
        return None
    inside = [item for n, item in enumerate(statements) if first < n < last and n != socat]
    if re.fullmatch(r"\)\s*&\s*(?:#.*)?", statements[last].code) and all(map(_is_of_the_search, inside)):
        return first
    return None


def _is_of_the_search(item: shell.Statement) -> bool:
    """Whether a statement only looks for socat, or reports on it."""
    return all(found.finds_socat or found == PATH for found in shapes.commands(item))
