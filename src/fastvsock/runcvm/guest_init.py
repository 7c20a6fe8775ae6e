"""Edits the scripts that RunCVM starts in the guest: the agent takes the place of their early socat. Text in, text out.

RunCVM's `/init` starts socat before the network, on the AF_VSOCK port that leads to dropbear. The agent joins that port
to dropbear too, and serves channels. It is started again if it ends. The test that comes first runs in the guest, since
a guest may be made of a cached root file system, in which the binary is missing or of an earlier release: there socat
is started, as before.

The text may be a here-document of the script that writes `/init`. What is inserted has no dollar sign, no backquote and
no backslash but those of socat's line, and so means the same with quotes around the document's end mark and without.
"""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from . import shapes, shell
from .binary import PROGRAM
from .script_edits import MARK, Unknown
from .shapes import NAME

AGENT = f"/.runcvm/guest/{PROGRAM} agent"  # where every guest has the bundle
# A here-document without quotes has a backslash before the dollar sign.
VALUE = rf"\\?{shapes.VALUE}"
LISTENING = re.compile(rf"VSOCK-LISTEN:(\d+|{VALUE})", re.I)
OPTIONS = r"(?:,[\w.=-]+)*"
ADDRESSES = re.compile(
    rf"""["']?VSOCK-LISTEN:(?P<port>\d+|{VALUE}){OPTIONS}["']?\s+
    ["']?TCP4?(?:-CONNECT)?:(?P<target>(?:[\w.-]+|{VALUE}):(?:\d+|{VALUE})){OPTIONS}["']?(?=[\s;)]|$)""",
    re.I | re.X,
)
# Before the addresses: a test, variables of the environment, and then a program with its options.
BEFORE = re.compile(
    rf"""(?:\[\s[^]]*\s\]\s*&&\s*)?(?:{NAME}=\S*\s+)*(?!(?:if|elif|while|until|then|else|do|time|case|!)\s)
    (?P<program>["']?(?:[\w./]|{VALUE}|\$\{{[^}}]*\}})(?:[\w./-]|{VALUE}|\$\{{[^}}]*\}})*["']?(?:\s[^;&|<>()`#]*)?)""",
    re.X,
)
LEAVES_IT = re.compile(r"(?:\S*/)?(?:setsid|start-stop-daemon)\s")  # in the background, without an `&`
PATH = shapes.Command("value", "PATH")
NOT_RUN = re.compile(r"#|(?:log\w*|echo|printf)\s")
FILE = rf"(?:&[12]|[\"']?(?:[\w./-]|{VALUE})+[\"']?)"
TAIL = re.compile(
    rf"(?P<output>(?:\s*(?:[12]?>>?|&>>?|<)\s*{FILE})*)\s*(?P<background>(?:&(?:\s*{NAME}=\\?\$!)?)?)\s*(?:#.*)?"
)
# Around one command, in one line.
COMPOUNDS = [
    re.compile(pattern + TAIL.pattern)
    for pattern in (
        r"\{\s+(?P<inner>.*);\s*\}",
        r"\(\s*(?P<inner>.*?)\s*\)",
        r"while\s+(?::|true)\s*;\s*do\s+(?P<inner>.*?);\s*(?:sleep\s+[\d.]+\s*;\s*)?done",
    )
]
BRANCH = re.compile(r"(?:(?P<opens>if|case)|(?P<closes>fi|esac)|(?P<turns>else|elif))\b")


@dataclass(frozen=True)
class Start:
    """How a statement starts socat: the agent's option for the same ports, where its output goes, and what follows."""

    forward: str
    output: str
    background: str

    @property
    def is_constant(self) -> bool:
        """Whether it means the same in another place of the script."""
        return "$" not in f"{self.forward}{self.output}{self.background}"


def guest_ports(scripts: Iterable[str]) -> set[str]:
    """The ports of AF_VSOCK where the guest listens, as the scripts that are run in it have them."""
    return {match for text in scripts for match in LISTENING.findall(text) if match.isdigit()}


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
    for number in reversed(_places(text, statements)):
        text = _with_agent(text, statements, number)
    return text


def _places(text: str, statements: list[shell.Statement]) -> list[int]:
    """The statements that start socat, but for those that come after another, and so find its port taken: they stay."""
    documents = shell.document_spans(text)

    def document(number: int) -> tuple[int, int] | None:
        start = statements[number].start
        return next((span for span in documents if span[0] <= start < span[1]), None)

    chosen: list[int] = []
    for number in (number for number, item in enumerate(statements) if _is_start(item)):
        last = chosen[-1] if chosen else number
        apart = not chosen or document(last) != document(number)  # a here-document is a script of its own
        if apart or _are_alternatives(statements[last + 1 : number]):
            chosen.append(number)
    if not chosen:
        raise Unknown("it starts no socat on a vsock port")
    return chosen


def _with_agent(text: str, statements: list[shell.Statement], number: int) -> str:
    """`text` with the agent in the place of one statement."""
    item = statements[number]
    start = _start(item.code)
    opening = _subshell(statements, number) if start.is_constant else None
    if opening is None:
        socat = item.text if item.text.endswith("\n") else f"{item.text}\n"
        end = f"done{start.output} {start.background}".rstrip()
        return text[: item.start] + _lines(item, start.forward, end, "else", [socat], "fi") + text[item.end :]
    inside = statements[opening + 1]
    return text[: inside.start] + _lines(inside, start.forward, f"done{start.output}", "fi") + text[inside.start :]


def _start(code: str) -> Start:
    """How a statement starts socat. Raises `Unknown` if it does more, or something else."""
    compound = next((match for pattern in COMPOUNDS if (match := pattern.fullmatch(code))), None)
    inner, output, background = compound.group("inner", "output", "background") if compound else (code, "", "")
    addresses = ADDRESSES.search(inner)
    if addresses is None:
        raise Unknown(f"socat joins a vsock port to something else than a TCP port: {code!r}")
    before, tail = BEFORE.fullmatch(inner[: addresses.start()].rstrip()), TAIL.fullmatch(inner, addresses.end())
    if before is None or tail is None:
        raise Unknown(f"socat is part of a larger command: {code!r}")
    background = background or tail["background"]
    if LEAVES_IT.match(before["program"]) and not background:
        raise Unknown(f"socat leaves the foreground by itself: {code!r}")
    return Start(f"--forward {addresses['port']}={addresses['target']}", output + tail["output"], background)


def _are_alternatives(between: Sequence[shell.Statement]) -> bool:
    """Whether what stands before these statements and what stands after them never run both."""
    depth = lowest = 0
    for item in between:
        for piece in shell.commands(item.code):
            branch = BRANCH.match(piece)
            if branch and branch["turns"] and depth == lowest:
                return True
            depth += bool(branch and branch["opens"]) - bool(branch and branch["closes"])
            lowest = min(lowest, depth)
    return False


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
