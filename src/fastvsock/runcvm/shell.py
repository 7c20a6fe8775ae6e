"""Takes a shell script apart, as far as recognizing its statements needs: logical lines, commands and words.

Commands are matched *flat*: each quoted string and each substitution is one letter, so that patterns see words, blanks
and operators, and nothing hides behind a quote.
"""

import re
import shlex
from dataclasses import dataclass

# What encloses a part of a word, and inside of which closers it does not.
PAIRS = (("$((", "))"), ("$(", ")"), ("${", "}"), ("`", "`"), ('"', '"'), ("'", "'"), ("(", ")"))
NOT_IN = {"'": ('"',), '"': ('"',), "(": ("", '"', "}", "`"), "`": ("`",), "$((": (), "$(": (), "${": ()}


@dataclass(frozen=True)
class Statement:
    """One logical line: `text` is as in the script, `code` has its continuations joined and no indent."""

    start: int
    end: int
    text: str
    code: str


def statements(text: str) -> list[Statement]:
    """The logical lines of a script, comments and empty ones too."""
    found, start = [], 0
    # A comment ends with its line, whatever its last character is.
    for match in re.finditer(r"[ \t]*#[^\n]*(?:\n|\Z)|(?:[^\n\\]|\\.)*(?:\n|\Z)", text, re.S):
        if match.group():
            code = match.group().replace("\\\n", " ").strip()
            found.append(Statement(start, match.end(), match.group(), code))
            start = match.end()
    return found


def document_spans(text: str) -> list[tuple[int, int]]:
    """Where the here-documents of a script begin and end: the lines between ``<< WORD`` and WORD."""
    found = re.finditer(r"(?<!<)<<-?[ \t]*(['\"]?)(\w+)\1[^\n]*\n(.*?)^\t*\2$", text, re.S | re.M)
    return [match.span(3) for match in found]


def documents(text: str) -> list[str]:
    """The here-documents of a script."""
    return [text[start:end] for start, end in document_spans(text)]


def words_of(code: str) -> list[str]:
    """The words of a command without its quotes; none if a quote goes on in the next line."""
    try:
        return shlex.split(code, comments=True)
    except ValueError:
        return []


def commands(code: str) -> list[str]:
    """The commands between the semicolons of a statement, without a comment at its end."""
    pieces, at = [""], 0
    while at < len(code) and not (code[at] == "#" and (not at or code[at - 1].isspace())):
        end = _after(code, at)
        if code[at:end] == ";":
            pieces.append("")
        else:
            pieces[-1] += code[at:end]
        at = end
    return [piece.strip() for piece in pieces]


def flat(code: str) -> str:
    """`code` with a ``Q`` for each quoted string, each substitution and each escaped character."""
    text, at = "", 0
    while at < len(code):
        end = _after(code, at)
        text += code[at] if end == at + 1 else "Q"
        at = end
    return text


def _after(code: str, at: int, inside: str = "") -> int:
    """Where the character at `at` ends, or the quoted string or substitution; `inside` is what closes one around it."""
    if inside == "'":
        return at + 1
    if code[at] == "\\":
        return at + 2
    for opener, closer in PAIRS:
        if code.startswith(opener, at) and inside not in NOT_IN[opener]:
            at += len(opener)
            while at < len(code) and not code.startswith(closer, at):
                at = _after(code, at, closer)
            return at + len(closer)
    return at + 1
