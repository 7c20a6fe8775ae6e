"""The commands that RunCVM's scripts consist of around a proxy, and around a search for socat: a table of their kinds.

A command is what stands between semicolons, and is matched flat: see shell.py. A command of no kind has a purpose that
is unknown here, so what it stands in is left alone. To have another version of RunCVM recognized, add to the table, and
say in `PROXYS` or `SEARCHES` where its commands may stand.
"""

import re
from dataclasses import dataclass

from . import shell

NAME = r"[A-Za-z_]\w*"
VALUE = rf"\$(?:(?:{NAME})|\{{(?:{NAME})\}})"
SETS = r"(?:(?:local|export|declare|typeset|readonly)\s+(?:-\w+\s+)?)?"
WORDS = r"\s[^;&|<>()]*"
LOOKED_FOR = r"(?:command\s+-v|which|type|hash)\s+\S+(?:\s*(?:[12&]?>\s*/dev/null|2>&1))*"
KINDS = {
    "nothing": r"",
    "condition": rf"(?:el)?if\s+(?:!\s*)?(?:{LOOKED_FOR}|\[\[?\s+(?:!\s+)?-\w\s+\S+\s+\]\]?)",
    "end": r"fi|exit\s+\d+|:",
    "pause": r"(?:(?:\S+/)?busybox\s+)?(?:[^\s=]+/)?u?sleep\s+[\d.]+s?",
    "pid": rf"{SETS}(?P<pid>{NAME})=\$!",
    "disowning": r"disown(?:\s+[^\s>]+)?(?:\s+2>\s*/dev/null)?(?:\s*\|\|\s*(?:true|:))?",
    "value": rf"{SETS}(?P<value>{NAME})=[^\s;&|<>()]*",
    "declaration": rf"local(?:\s+{NAME})+",
    "log": rf"log\w*{WORDS}",
    "message": rf"(?:log\w*|echo){WORDS}>>?\s*(?:&2|/dev/console)|echo{WORDS}",
}
PATTERNS = {kind: re.compile(pattern) for kind, pattern in KINDS.items()}
PROXYS = (
    "pause",
    "pid",
    "disowning",
    "trap",
)  # what starts and ends a proxy, besides the value of its port and of socat's program
SEARCHES = ("nothing", "condition", "end", "log", "message")  # what looks for socat, besides the value of its program
# Of a trap: a process is ended when the script ends, and nothing else is done.
KILL = re.compile(r"kill\s+(?:-\w+\s+)?[\"']?\$\{?\w+\}?[\"']?(?:\s+2>\s*/dev/null)?(?:\s*\|\|\s*(?:true|:))?\s*;?")
SIGNAL = re.compile(r"(?:SIG)?(?:EXIT|INT|TERM|HUP|QUIT)|\d+")


@dataclass(frozen=True)
class Command:
    """A command by its kind, empty for an unknown one, and the name of the variable that it sets."""

    kind: str
    name: str = ""

    @property
    def finds_socat(self) -> bool:
        """Whether it may be part of a search for socat's program."""
        return self.kind in SEARCHES or (self.kind == "value" and "socat" in self.name.lower())

    def serves_proxy(self, port: str) -> bool:
        """Whether only a proxy needs it, whose port is in the variable `port`."""
        own = self.kind == "value" and (self.name == port or "socat" in self.name.lower())
        return own or self.kind in PROXYS


def command(text: str) -> Command:
    """The kind of a command, without the ``then`` or ``else`` before it."""
    text = re.sub(r"^(?:then|else)\b\s*", "", text)
    flat = shell.flat(text.replace('"$!"', "$!"))
    for kind, pattern in PATTERNS.items():
        found = pattern.fullmatch(flat)
        if found and (kind != "condition" or "socat" in text.lower()):
            return Command(kind, found[found.lastgroup] if found.lastgroup else "")
    return Command("trap" if _is_trap(shell.words_of(text)) else "")


def commands(statement: shell.Statement) -> list[Command]:
    """The commands of a statement."""
    return [command(piece) for piece in shell.commands(statement.code)]


def _is_trap(words: list[str]) -> bool:
    return (
        len(words) > 2
        and words[0] == "trap"
        and bool(KILL.fullmatch(words[1]))
        and all(map(SIGNAL.fullmatch, words[2:]))
    )
