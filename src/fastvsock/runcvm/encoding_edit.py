"""Has `runcvm-ctr-exec` encode what it passes to dbclient in bash itself. Text in, text out.

RunCVM's own function is a pipe to tr(1): with the subshells around it each list costs four processes, and all of them
run before any exec, also where a channel is used and nobody reads the result. Bash does the same without a process.
"""

import re

from . import shell
from .script_edits import MARK
from .shapes import NAME, VALUE

# ``$(printf '%s\n' "${NAMES[@]}" | FUNCTION)``, and ``$(echo -n $NAME | FUNCTION)``.
LIST = (
    rf"\$\(printf\s+(?P<quote>['\"]?)%s\\n(?P=quote)\s+\"\$\{{(?P<list>{NAME})\[@\]\}}\"\s*\|\s*(?P<function>{NAME})\)"
)
DIRECTORY = rf"\$\((?:echo\s+-n|printf\s+'?%s'?)\s+\"?(?P<directory>{VALUE})\"?\s*\|\s*(?P<directory_function>{NAME})\)"
FUNCTION = re.compile(rf"^(?P<name>{NAME})\(\)\s*\{{\n(?:[ \t]*#[^\n]*\n)*[ \t]*(?P<tr>tr [^\n]*)\n\}}[ \t]*\n", re.M)
TR = ["tr", r"\011\012\040\047\042\134", r"\200\201\202\203\204\205"]
# NAME FORMAT [WORD ...] sets a variable. Characters are bytes there: elsewhere a backslash may be half of one.
DEFINITION = rf"""{MARK} as the next function, without processes
fastvsock_encode() {{
  local LC_ALL=C fastvsock_text
  printf -v fastvsock_text "$2" "${{@:3}}"
  fastvsock_text=${{fastvsock_text//$'\t'/$'\200'}}
  fastvsock_text=${{fastvsock_text//$'\n'/$'\201'}}
  fastvsock_text=${{fastvsock_text// /$'\202'}}
  fastvsock_text=${{fastvsock_text//\'/$'\203'}}
  fastvsock_text=${{fastvsock_text//\"/$'\204'}}
  fastvsock_text=${{fastvsock_text//\\/$'\205'}}
  printf -v "$1" %s "$fastvsock_text"
}}

"""


def encode_directory(words: str, text: str) -> tuple[str, list[str]]:
    """The `words` of a command with the directory as a variable, and the line before them that sets it.

    They stay as they are, and there is no line, where the function of the script `text` is not known.
    """
    function, found = _function(text), re.search(DIRECTORY, words)
    if function is None or found is None or found["directory_function"] != function["name"]:
        return words, []
    line = f'fastvsock_encode fastvsock_directory %s "{found["directory"]}"'
    return words.replace(found.group(), "$fastvsock_directory"), [line]


def encode_lists(text: str) -> str:
    """The script `text` with each list encoded without a process; unchanged where its function is not known."""
    function = _function(text)
    if function is None:
        return text

    def encoded(found: re.Match[str]) -> str:
        if found["function"] != function["name"]:
            return found.group()
        return f"{found['indent']}fastvsock_encode {found['name']} '%s\\n' \"${{{found['list']}[@]}}\""

    assignment = re.compile(rf"^(?P<indent>[ \t]*)(?P<name>{NAME})={LIST}(?=[ \t]*$)", re.M)
    start = function.start()
    return text[:start] + DEFINITION + assignment.sub(encoded, text[start:])


def _function(text: str) -> re.Match[str] | None:
    """The definition of the script's own function, `name`, if it is RunCVM's and no other."""
    found = [match for match in FUNCTION.finditer(text) if shell.words_of(match["tr"]) == TR]
    return found[0] if len(found) == 1 else None
