"""Makes the two edits to RunCVM's shell scripts: text in, text out.

`add_aliases` puts words into the list of the `for` loop of `create_aliases()`. `end_proxy` replaces the block of
`runcvm-ctr-exec` that starts socat on a guessed port and then dbclient on that port: by the transport, which connects
and then becomes dbclient (``-J '&3'``: the connection is its descriptor 3), or by ``fastvsock proxy … --``, which
listens on a port of the kernel's choice. If dbclient may be a shell function, which no program can become, it gets
the transport as a child of its own (``-J COMMAND``); dbclient starts that by root's shell in the image's passwd, which
some images do not have.

A script is recognized by its statements, not by its spacing: lines that a backslash joins are one statement, and each
statement of the block must be one of the few kinds that such a block consists of. With any other among them the block
is left alone, since its purpose is unknown: `Unknown` gives the reason. Only that block is replaced; what follows
``exec`` of dbclient stays as it is, letter for letter, except for the port.
"""

import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass

from . import shapes, shell
from .shapes import NAME, SETS

BLANK = r"(?:[ \t]|\\\n)"  # what may stand between two words
DYNAMIC = re.compile(rf"\$(?:{NAME}|\{{{NAME}\}})")
PLAIN = re.compile(rf"(?:[\w./:@%+=-]|{DYNAMIC.pattern})+")
REDIRECTION = re.compile(r"(?:\d?>>?|&>>?|\d?<)(?:&\d|\S*)")
INTERPRETER = re.compile(r"(?:.*/)?(?:ld|python3(?:\.\d+)?|bash|sh|env)")
CLIENT = re.compile(r"[\w./${}-]*dbclient[\w}]*", re.I)
TRANSPORT = "runcvm-vsock-connect"
LOCAL = re.compile(r"@(?:127\.0\.0\.1|localhost)\b")
MARK = "# fastvsock:"
# Seconds for which the transport tries again: a guest that boots, or a VMM that refuses one connection in many.
WAIT = "10"
# The shell in socat's EXEC address, in quotes that socat takes away before it starts the shell: it cannot work so.
QUOTED_SHELL = re.compile(r"(?:\S*/)?(?:ba|a)?sh -c (['\"])(?:exec )?([^'\"]*)\1")
UDS = "/run/firecracker.vsock"
GUEST_PORT = "22"  # of AF_VSOCK, where RunCVM's /init listens: scripts/docker/firecracker-init.sh
UMBRELLA_USED = re.compile(r"/fastvsock[\"'}]*\s+proxy\s")


class Unknown(Exception):
    """The shape of the script is unknown. The message says what is different."""


@dataclass(frozen=True)
class SocatProxy:
    """What socat is started with: the words of the transport's command, and the expression for its own port."""

    words: list[str]
    port: str


def add_aliases(text: str, added: Sequence[str]) -> str:
    """`text` with the words `added` in the word list of create_aliases(), if they are missing there."""
    parentheses = r"[ \t]*\([ \t]*\)"
    name = rf"(?:function[ \t]+create_aliases(?:{parentheses})?|create_aliases{parentheses})"
    header = rf"^[ \t]*{name}{BLANK}*\n?[ \t]*\{{"
    functions = list(re.finditer(header, text, re.M))
    if len(functions) != 1:
        raise Unknown(f"{len(functions) or 'no'} definition{'s' * (len(functions) > 1)} of create_aliases()")
    close = re.search(r"^[ \t]*\}", text[functions[0].end() :], re.M)
    end = functions[0].end() + close.start() if close else len(text)
    loops = list(re.finditer(rf"\bfor{BLANK}+{NAME}{BLANK}+in{BLANK}", text[functions[0].end() : end]))
    before = text[functions[0].end() :][: loops[0].start() if loops else 0]
    if not loops or "}" in re.sub(r"\$\{[^}]*\}", "", before):
        raise Unknown("no 'for … in' loop in create_aliases()")
    start = functions[0].end() + loops[0].end()
    stop = re.compile(r";|(?<!\\)\n").search(text, start, end)
    words = list(re.compile(r"[^\s;\\]+").finditer(text, start, stop.start() if stop else start))
    if "busybox" not in [found.group() for found in words]:
        raise Unknown("the loop of create_aliases() has no list of words with busybox in it")
    odd = next((found.group() for found in words if not PLAIN.fullmatch(found.group())), None)
    if odd is not None:
        raise Unknown(f"the list of create_aliases() has {odd!r} in it, which is not the name of a program")
    last = words[-1].end()
    missing = "".join(f" {word}" for word in added if word not in [found.group() for found in words])
    return f"{text[:last]}{missing}{text[last:]}"


def end_proxy(text: str, proxy: bool = False, ports: Collection[str] = (), binary: bool = False) -> str:
    """`text` with its proxy block replaced, in the form of `proxy` or without a port; the same text if it has none.

    `ports` is where the guest listens, as far as that is known: another port in the script is replaced by that one.
    With `binary` the bundle's static binary is started, and neither the launcher nor an interpreter for it.
    Raises `Unknown` if dbclient is started in a way that is not known.
    """
    if not re.match(r"#![^\n]*\bbash\b", text):
        raise Unknown("it does not begin with '#!…bash'")
    if "\r" in text:
        raise Unknown("it has carriage returns, with which no shell runs it")
    statements = list(shell.statements(text))
    found = [(index, spec) for index, item in enumerate(statements) if (spec := _socat(item.code))]
    if not found and _is_done(statements):
        return text
    if not found:
        found = _global_proxy(statements)
    if len(found) != 1:
        raise Unknown(f"{len(found) or 'no'} socat that listens and runs {TRANSPORT} in the background")
    index, spec = found[0]
    first, last = _extent(statements, index, spec)
    block = statements[first : last + 1]
    kept = _kept(block, spec, statements[:first] + statements[last + 1 :])
    indent = re.match(r"[ \t]*", block[-1].text)
    lead = indent.group() if indent else ""
    start = _start(block[-1], spec, proxy, statements, ports, binary)
    what = (
        "a port of the kernel's choice, for this command alone" if proxy else "no port: dbclient has its own connection"
    )
    new = "".join(item.text for item in kept) + f"{lead}{MARK} {what}\n{start}"
    return text[: block[0].start] + new + text[block[-1].end :]


def uses_umbrella(script: str) -> bool:
    """Whether an exec script starts dbclient by `fastvsock proxy`, and so needs that launcher."""
    lines = script.replace("\\\n", " ").splitlines()
    return any(UMBRELLA_USED.search(line) for line in lines if not line.lstrip().startswith("#"))


def _is_done(statements: list[shell.Statement]) -> bool:
    """Whether dbclient is started without a port of its own choice already."""
    return any(has_transport(shell.words_of(item.code)) for item in statements)


def has_transport(words: list[str]) -> bool:
    """Whether a command is dbclient with -J, by itself or behind a transport's ``--``, or behind the proxy's."""
    words = words[words[:1] == ["exec"] :]
    at = words.index("--") if "--" in words else -1
    client = words[at + 1 :]
    if not client or not CLIENT.fullmatch(client[0]):
        return False
    host = next((index for index, word in enumerate(client) if re.search(r"[\w}]@", word)), len(client))
    return "-J" in client[:host] or "proxy" in words[: max(at, 0)]


def _global_proxy(statements: list[shell.Statement]) -> list[tuple[int, SocatProxy]]:
    """The statement that names the port of the one proxy for all, which the launcher has started.

    What such a script lacks is the transport. It is taken for one only behind a condition on USE_VSOCK.
    """
    if any("socat" in item.code.lower() for item in statements if not item.code.startswith("#")):
        return []
    found = []
    branches: list[bool] = []  # of each `if` that is open: whether this is its branch for vsock
    for index, item in enumerate(statements):
        if re.match(r"if\s", item.code):
            branches.append("USE_VSOCK" in item.code)
        elif branches and re.match(r"(?:else|elif)\b", item.code):
            branches[-1] = False
        elif branches and re.match(r"fi\b", item.code):
            branches.pop()
        setting = re.fullmatch(rf"{SETS}({NAME})=([\"']?)\d+\2", item.code)
        if setting and any(branches):
            port = f"${setting.group(1)}"
            client = next((later for later in statements[index + 1 :] if _is_client(later.code)), None)
            if client and re.search(_option(port), client.text) and LOCAL.search(client.code):
                found.append((index, SocatProxy([f"$RUNCVM_GUEST/scripts/{TRANSPORT}", UDS, GUEST_PORT], port)))
    return found


def _socat(code: str) -> SocatProxy | None:
    """What a statement starts in the background, if it is socat between a TCP port and the transport."""
    background = re.fullmatch(rf"(.*[^&|;])&\s*(?:{NAME}=\$!\s*)?(?:#.*)?", code)
    words = shell.words_of(re.sub(r"(?<=[<>])[ \t]+", "", background.group(1))) if background else []
    while words[:1] in (["nohup"], ["setsid"]):
        del words[0]
    if not words or "socat" not in words[0].lower():
        return None
    ports = [m.group(1) for word in words if (m := re.match(r"TCP4?(?:-LISTEN|-L):([^,]+)", word, re.I))]
    commands = [word[5:] for word in words if word.upper().startswith("EXEC:")]
    rest = [w for w in words[1:] if not re.match(r"-|TCP4?-L|EXEC:", w, re.I) and not REDIRECTION.fullmatch(w)]
    unquoted = re.sub(r'"(?:[^"\\]|\\.)*"', "", code)
    if len(ports) != 1 or len(commands) != 1 or rest or re.search(r"'[^']*\$[^']*'", unquoted):
        return None
    quoted = QUOTED_SHELL.fullmatch(commands[0])
    return SocatProxy((quoted.group(2) if quoted else commands[0]).split(), ports[0])


def _extent(statements: list[shell.Statement], socat: int, spec: SocatProxy) -> tuple[int, int]:
    """The numbers of the block's first statement, which sets the port, and its last, which starts dbclient."""
    ends = (i for i in range(socat + 1, len(statements)) if _is_client(statements[i].code))
    last = next(ends, None)
    if last is None or not re.search(_option(spec.port), statements[last].text):
        raise Unknown(f"no dbclient with -p {spec.port} after the proxy")
    first = socat
    name = _variable(spec.port)
    for index in range(socat, -1, -1):
        code = statements[index].code
        if name and re.match(rf"{SETS}{name}=", code):
            first = index
            break
    else:
        if name:
            raise Unknown(f"nothing sets ${name} before the proxy")
    while first and re.fullmatch(rf"{SETS}\w*(?i:socat)\w*=\S+", statements[first - 1].code):
        first -= 1
    return first, last


def _kept(block: list[shell.Statement], spec: SocatProxy, others: list[shell.Statement]) -> list[shell.Statement]:
    """The statements of the block that do not concern the proxy. Raises `Unknown` for one that may."""
    gone = _of_proxy(block, spec)
    dropped = {id(item) for item in gone}
    names = {name for item in gone for name in re.findall(rf"(?:^|&\s*){SETS}({NAME})=", item.code)}
    kept = []
    for item in block[:-1]:
        if id(item) in dropped or not item.code or item.code.startswith("#"):
            continue
        if shapes.command(item.code).kind not in ("log", "message", "declaration"):
            raise Unknown(f"among its statements is {item.code!r}, which is not known in such a block")
        if not any(re.search(rf"\b{name}\b", item.code) for name in names):
            kept.append(item)
    rest = re.sub(_option(spec.port), "", block[-1].text)
    for item in [*others, shell.Statement(0, 0, rest, rest)]:
        for name in names:
            if not item.code.startswith("#") and re.search(rf"\$(?:\{{[#!]?)?{name}\b", item.code):
                raise Unknown(f"${name} is used elsewhere as well: {item.code!r}")
    return kept


def _of_proxy(block: list[shell.Statement], spec: SocatProxy) -> list[shell.Statement]:
    """The statements that start, watch and end the proxy."""
    port = _variable(spec.port)
    gone, depth = [], 0
    for item in block[:-1]:
        commands = shapes.commands(item)
        if depth or re.match(r"if\s.*socat", item.code, re.I):
            pieces = shell.commands(item.code)
            odd = next((piece for piece, found in zip(pieces, commands, strict=True) if not found.finds_socat), None)
            if odd is not None:
                raise Unknown(f"the search for socat has {odd!r} in it")
            depth += sum(piece.startswith("if ") for piece in pieces) - pieces.count("fi")
            gone.append(item)
        elif _socat(item.code) or all(found.serves_proxy(port) for found in commands):
            gone.append(item)
    return gone


def _is_client(code: str) -> bool:
    return bool(re.match(rf"""(?:exec\s+)?["']?{CLIENT.pattern}["']?\s""", code, re.I))


def _option(port: str) -> str:
    """The pattern for dbclient's -p with this port."""
    name = _variable(port)
    value = rf"\$(?:{name}|\{{{name}\}})" if name else re.escape(port)
    return rf"(?<=\s)-p{BLANK}*(?P<quote>\"?){value}(?P=quote)(?=\s|\\\n)"


def _variable(expression: str) -> str:
    """The name in ``$name`` or ``${name}``; empty for a number."""
    found = re.fullmatch(rf"\$\{{?({NAME})\}}?", expression)
    if not found and not expression.isdigit():
        raise Unknown(f"its port is {expression!r}")
    return found.group(1) if found else ""


def _start(
    client: shell.Statement,
    spec: SocatProxy,
    proxy: bool,
    statements: list[shell.Statement],
    ports: Collection[str],
    binary: bool,
) -> str:
    """The statement that starts dbclient in the new way."""
    if len(re.findall(_option(spec.port), client.text)) != 1:
        raise Unknown("dbclient has more than one -p")
    before, uds, port = _transport(spec.words, statements)
    if len(ports) == 1 and port not in ports:  # nothing listens on the script's own port
        port = next(iter(ports))
    is_program = re.match(r"exec\s|\S*[/$]", client.code)
    if proxy:
        if not is_program:
            raise Unknown("dbclient may be a function here, which only a shell can call")
        # By the bash that runs the script, unless an interpreter was named: an image may have no shell of its own.
        launcher = [*(before[:-1] or ["$BASH"]), _sibling(before[-1])]
        umbrella = [_in_bin(before[-1], "fastvsock")] if binary else launcher
        words = [*umbrella, "proxy", "--wait", WAIT, uds, port, "--"]
        option = "-p {port}"
    elif is_program:
        before = [_in_bin(before[-1], TRANSPORT)] if binary else before
        words, option = [*before, "--wait", WAIT, uds, port, "--"], "-J '&3'"
    else:
        before = before[-1:] if binary else before
        command = " ".join(_quoted_again(word) for word in [*before, "--wait", WAIT, uds, port])
        words, option = [], f'-J "{command}"'
    prefix = "".join(f"{quoted(word)} " for word in words)
    text = re.sub(_option(spec.port), lambda _: option, client.text)
    return re.sub(r"^([ \t]*(?:exec[ \t]+)?)", lambda match: match.group() + prefix, text, count=1)


def _transport(words: list[str], statements: list[shell.Statement]) -> tuple[list[str], str, str]:
    """The transport's program (and interpreter), the UDS and the port that socat's command names."""
    odd = next((word for word in words if not PLAIN.fullmatch(word)), None)
    if odd is not None or len(words) < 3:
        raise Unknown(f"socat runs {' '.join(words)!r}, not the transport with a socket and a port")
    *before, uds, port = words
    if not all(map(INTERPRETER.fullmatch, before[:-1])):
        raise Unknown(f"socat runs the transport by {' '.join(before[:-1])!r}, which is not python3, bash or sh")
    program = before[-1]
    name = DYNAMIC.fullmatch(program) and _variable(program)
    if name:
        values = [item.code for item in statements if re.match(rf"{SETS}{name}=", item.code)]
        program = values[-1].strip("\"'") if values else ""
    if not program.endswith(f"/{TRANSPORT}"):
        raise Unknown(f"socat runs {before[-1]!r}, which may not be {TRANSPORT}")
    return before, uds, port


def _quoted_again(word: str) -> str:
    """A word inside of double quotes that a second shell will read: ``${NAME@Q}`` (bash 4.4) quotes for that one."""
    return DYNAMIC.sub(lambda match: f"${{{_variable(match.group())}@Q}}", word)


def quoted(word: str) -> str:
    return f'"{word}"' if "$" in word else word


def _sibling(program: str) -> str:
    """The launcher `fastvsock` beside the transport."""
    folder, slash, _ = program.rpartition("/")
    return f"{folder}/fastvsock" if slash else f"${{{_variable(program)}%/*}}/fastvsock"


def _in_bin(program: str, name: str) -> str:
    """The static binary by `name`, in the bundle that has the transport in its scripts/."""
    folder, slash, _ = program.rpartition("/scripts/")
    return f"{folder if slash else f'${{{_variable(program)}%/scripts/*}}'}/bin/{name}"
