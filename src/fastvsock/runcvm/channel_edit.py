"""Has `runcvm-ctr-exec` use a channel to the guest's agent, and dbclient where no agent is reached. Text in, text out.

dbclient's last word is a command for the guest's shell: RunCVM's `runcvm-vm-exec` with user, directory, arguments and
environment, encoded with bytes that tr(1) turns back there. `fastvsock exec` gets the same from the variables that
these words are made of, as they are: a name with one of the bytes 0x80 to 0x85 (the second of "Ä") arrives whole.

The statement that starts dbclient stays, as the arguments of ``--or-else``: a VM that was started before fastvsock was
installed has no agent. What a guest's agent has been asked for is never asked of dbclient again.
"""

import re
from collections.abc import Sequence

from . import shell
from .bundle import FOLDERS
from .encoding_edit import DIRECTORY, LIST, encode_directory, encode_lists
from .script_edits import CLIENT, MARK, Unknown, has_transport, quoted
from .shapes import NAME, SETS, VALUE

# Seconds: a VMM refuses one connection in many, and then takes the next one.
WAIT = "0.02"
# The bundle's programs, as the guest sees them.
PROGRAMS = ":".join(f"/.runcvm/guest/{folder}" for folder in FOLDERS)
BINARY = re.compile(r"(.*/bin/)(?:fastvsock|runcvm-vsock-connect)")
# The command for the guest, in double quotes, with each of its words in single ones.
REMOTE = re.compile(
    rf"""\s"{VALUE}\s+'(?P<user>{VALUE})'\s+'{DIRECTORY}'"""
    rf"""\s+'(?P<arguments>{VALUE})'\s+'(?P<environment>{VALUE})'"\s*"""
)
ENVIRONMENT = r"(?:mapfile|readarray)\s+-t\s+{name}\s+<\s*<\(\s*env(?:\s+-u\s+(?:_|SHLVL|PWD|OLDPWD))*\s*\)"


def use_channel(text: str) -> str:
    """`text`, in which dbclient has a connection of its own by the binary, with a channel before that.

    Raises `Unknown` with what is different from the scripts that are known.
    """
    statements = [item for item in shell.statements(text) if not item.code.startswith("#")]
    item = next((item for item in statements if has_transport(shell.words_of(item.code))), None)
    if item is None:
        raise Unknown("it starts dbclient without a connection of its own")
    command = re.fullmatch(r"(?P<indent>[ \t]*)(?P<exec>(?:exec[ \t]+)?)(?P<words>.*?)(?P<end>\s*)", item.text, re.S)
    words = shell.words_of(item.code)[1 if command and command["exec"] else 0 :]
    binary = BINARY.fullmatch(words[0]) if command and words else None
    if command is None or binary is None or "--" not in words:
        raise Unknown("the static binary does not become dbclient there")
    if "--or-else" in words:
        return text
    if re.search(r"[;&|<>()]|\s#", shell.flat(item.code)):
        raise Unknown("more than dbclient is in its line")
    at = words.index("--")
    same = _same(item.code, words[at + 1 :], statements)
    client, first = encode_directory(command["words"], text)
    lines = (
        f"{command['exec']}{quoted(binary[1] + 'fastvsock')} exec --wait {WAIT} --or-else",
        f"  {client} ';'",
        f"  {same} {quoted(words[at - 2])} -- {_arguments(item.code, statements)}",
    )
    lead = command["indent"]
    what = f"{MARK} a channel to the guest's agent; where none is reached, dbclient"
    new = "\n".join(lead + line for line in (what, *first, f" \\\n{lead}".join(lines)))
    return encode_lists(text[: item.start] + new + command["end"] + text[item.end :])


def _same(code: str, client: Sequence[str], statements: Sequence[shell.Statement]) -> str:
    """The options of `fastvsock exec` with which it does what dbclient would have the guest do."""
    remote = _remote(code)
    user, directory = _name(remote["user"]), _name(remote["directory"])
    for name, number in ((user, 1), (directory, 2)):
        values = [value.strip('"') for value in _assigned(statements, name)]
        if values not in ([f"${number}"], [f"${{{number}}}"]):
            raise Unknown(f"${name} is not the script's argument {number}")
    listed = _listed(statements, _name(remote["environment"]))
    if not any(re.fullmatch(ENVIRONMENT.format(name=listed), item.code) for item in statements):
        raise Unknown(f"${{{listed}[@]}} is not the script's environment")
    return " ".join(
        [
            "-i",
            *_terminal(client, statements),
            f'--clear-env --preserve-env -e "PATH=${{RUNCVM_PATH:-{PROGRAMS}}}:$PATH"',
            f'-u "${{{user}%:*}}" --groups "${{{user}##*:}}" -w "${directory}"',
        ]
    )


def _terminal(client: Sequence[str], statements: Sequence[shell.Statement]) -> list[str]:
    """dbclient's own options, of which only -t is known: it is `fastvsock exec`'s as well."""
    end = next((index for index, word in enumerate(client) if word in ("-J", "-p")), 1)
    options = client[1:end]
    lists = [match[1] for word in options if (match := re.fullmatch(rf"\$\{{({NAME})\[@\]\}}", word))]
    values = [value for name in lists for value in _assigned(statements, name)]
    if (
        not client
        or not CLIENT.fullmatch(client[0])
        or len(lists) < len(options)
        or {*values} - {"(-t)", '("-t")', "()"}
    ):
        raise Unknown(f"dbclient has the options {' '.join([*options, *values])}")
    return [f'"${{{name}[@]}}"' for name in lists]


def _arguments(code: str, statements: Sequence[shell.Statement]) -> str:
    """The command for the guest."""
    listed = _listed(statements, _name(_remote(code)["arguments"]))
    if _assigned(statements, listed) != ['("$@")']:
        raise Unknown(f"${{{listed}[@]}} is not the script's other arguments")
    return f'"${{{listed}[@]}}"'


def _remote(code: str) -> re.Match[str]:
    remote = REMOTE.search(code)
    if remote is None or remote.end() != len(code):
        raise Unknown("dbclient's command is not known: user, directory, arguments and environment were expected")
    return remote


def _listed(statements: Sequence[shell.Statement], name: str) -> str:
    """The array whose elements the variable `name` holds in their encoded form."""
    found = [match for item in statements if (match := re.fullmatch(rf"{SETS}{name}={LIST}", item.code))]
    if len(found) != 1 or len(_assigned(statements, name)) != 1:
        raise Unknown(f"${name} is not made of one array by printf")
    return found[0]["list"]


def _assigned(statements: Sequence[shell.Statement], name: str) -> list[str]:
    """What is assigned to a variable, in each place."""
    pattern = re.compile(rf"(?<![\w$'\"{{-]){name}\+?=(\([^)]*\)|[^\s;&|)]*)")
    return [value for item in statements for value in pattern.findall(item.code)]


def _name(value: str) -> str:
    """The name of the variable in ``$name`` or ``${name}``."""
    return value.strip("${}")
