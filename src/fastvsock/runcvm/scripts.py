"""The two edits to RunCVM's shell scripts, as text in and text out.

`add_alias` puts a word into the list of the `for` loop of `create_aliases()`. `end_proxy` replaces the block of
`runcvm-ctr-exec` that starts socat on a guessed port and then dbclient on that port: by dbclient with the transport
as its own child (``-J``), or by ``fastvsock proxy … --``, which listens on a port of the kernel's choice.

A script is known by its statements, not by its spacing: lines that a backslash joins are one statement, and each
statement of the block must be one of the few that such a block is made of. With anything else among them the block is
left alone, since nobody can tell what it is for: `Unknown` says why. What is replaced is that block; what follows
``exec`` of dbclient stays as it is, letter for letter, but for the port.
"""

import re
import shlex
from dataclasses import dataclass

BLANK = r"(?:[ \t]|\\\n)"  # what may stand between two words
NAME = r"[A-Za-z_]\w*"
DYNAMIC = re.compile(rf"\$(?:{NAME}|\{{{NAME}\}})")
PLAIN = re.compile(rf"(?:[\w./:@%+=-]|{DYNAMIC.pattern})+")
REDIRECTION = re.compile(r"(?:\d?>>?|&>>?|\d?<)(?:&\d|\S*)")
INTERPRETER = re.compile(r"(?:.*/)?(?:ld|python3(?:\.\d+)?|bash|sh|env)")
SETS = r"(?:(?:local|export|declare)\s+)?"
# What may stand between `if ! command -v socat` and its `fi`.
BRANCH = re.compile(r"(?:then|else|elif\s.*|fi|#.*|\w*(?i:socat)\w*=.*|log\w*\s.*|echo\s.*|exit\s+\d+|:)?")
TRANSPORT = "runcvm-vsock-connect"
MARK = "# fastvsock:"


class Unknown(Exception):
    """The script has no shape that is known. The message says what is different."""


@dataclass(frozen=True)
class Statement:
    """One logical line: `text` is as in the script, `code` has its continuations joined and no indent."""

    start: int
    end: int
    text: str
    code: str


@dataclass(frozen=True)
class Proxy:
    """What socat is started with: the words of the transport's command, and the expression for its own port."""

    words: list[str]
    port: str


def add_alias(text: str, word: str = "tar") -> str:
    """`text` with `word` in the word list of create_aliases(); the same text where it is there already."""
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
    if word in [found.group() for found in words]:
        return text
    last = words[-1].end()
    return f"{text[:last]} {word}{text[last:]}"


def end_proxy(text: str, proxy: bool = False) -> str:
    """`text` with its proxy block replaced, in the form of `proxy` or without a port; the same text where it has none.

    Raises `Unknown` where dbclient is started in a way that is not known.
    """
    if not re.match(r"#![^\n]*\bbash\b", text):
        raise Unknown("it does not begin with '#!…bash'")
    statements = list(_statements(text))
    found = [(index, spec) for index, item in enumerate(statements) if (spec := _socat(item.code))]
    if not found and _is_done(statements):
        return text
    if len(found) != 1:
        raise Unknown(f"{len(found) or 'no'} socat that listens and runs {TRANSPORT} in the background")
    index, spec = found[0]
    first, last = _extent(statements, index, spec)
    block = statements[first : last + 1]
    kept = _kept(block, spec, statements[:first] + statements[last + 1 :])
    indent = re.match(r"[ \t]*", block[-1].text)
    lead = indent.group() if indent else ""
    start = _start(block[-1], spec, proxy, statements)
    what = (
        "a port of the kernel's choice, for this command alone" if proxy else "no port: the transport is dbclient's own"
    )
    new = "".join(item.text for item in kept) + f"{lead}{MARK} {what}\n{start}"
    return text[: block[0].start] + new + text[block[-1].end :]


def _statements(text: str) -> list[Statement]:
    found, start = [], 0
    # A comment ends with its line, whatever its last character is.
    for match in re.finditer(r"[ \t]*#[^\n]*(?:\n|\Z)|(?:[^\n\\]|\\.)*(?:\n|\Z)", text, re.S):
        if match.group():
            code = match.group().replace("\\\n", " ").strip()
            found.append(Statement(start, match.end(), match.group(), code))
            start = match.end()
    return found


def _is_done(statements: list[Statement]) -> bool:
    """Whether dbclient is started as this module would have it, by whomever it was written."""
    return any(
        "dbclient" in item.code.lower() and re.search(r"\s-J\b|fastvsock\S*\s+proxy\s", item.code)
        for item in statements
        if not item.code.startswith("#")
    )


def _words(code: str) -> list[str]:
    try:
        return shlex.split(code, comments=True)
    except ValueError:  # a quote that goes on in the next line
        return []


def _socat(code: str) -> Proxy | None:
    """What a statement starts in the background, if that is socat between a TCP port and the transport."""
    background = re.fullmatch(r"(.*[^&|;])&\s*(?:#.*)?", code)
    words = _words(background.group(1)) if background else []
    if not words or "socat" not in words[0].lower():
        return None
    ports = [m.group(1) for word in words if (m := re.match(r"TCP4?(?:-LISTEN|-L):([^,]+)", word, re.I))]
    commands = [word[5:] for word in words if word.upper().startswith("EXEC:")]
    rest = [w for w in words[1:] if not re.match(r"-|TCP4?-L|EXEC:", w, re.I) and not REDIRECTION.fullmatch(w)]
    if len(ports) != 1 or len(commands) != 1 or rest or re.search(r"'[^'\"]*\$[^'\"]*'", code):
        return None
    return Proxy(commands[0].split(), ports[0])


def _extent(statements: list[Statement], socat: int, spec: Proxy) -> tuple[int, int]:
    """The numbers of the block's first statement, which sets the port, and its last, which starts dbclient."""
    ends = (i for i in range(socat + 1, len(statements)) if _is_client(statements[i].code))
    last = next(ends, None)
    if last is None or not re.search(_option(spec.port), statements[last].text):
        raise Unknown(f"no dbclient with -p {spec.port} behind socat")
    first = socat
    name = _variable(spec.port)
    for index in range(socat - 1, -1, -1):
        code = statements[index].code
        if name and re.match(rf"{SETS}{name}=", code):
            first = index
            break
    else:
        if name:
            raise Unknown(f"nothing sets ${name} before socat")
    while first and re.fullmatch(rf"{SETS}\w*(?i:socat)\w*=\S+", statements[first - 1].code):
        first -= 1
    return first, last


def _kept(block: list[Statement], spec: Proxy, others: list[Statement]) -> list[Statement]:
    """The statements of the block that have nothing to do with the proxy. Raises `Unknown` for one that may have."""
    gone = _goners(block, spec)
    dropped = {id(item) for item in gone}
    names = {m.group(1) for item in gone if (m := re.match(rf"{SETS}({NAME})=", item.code))}
    kept = []
    for item in block[:-1]:
        if id(item) in dropped or not item.code or item.code.startswith("#"):
            continue
        if not re.match(r"log\w*\s|local\s+\w+$", item.code):
            raise Unknown(f"among its statements is {item.code!r}, which such a block does not have")
        if not any(re.search(rf"\b{name}\b", item.code) for name in names):
            kept.append(item)
    for item in others:
        for name in names:
            if not item.code.startswith("#") and re.search(rf"\$\{{?{name}\b", item.code):
                raise Unknown(f"${name} is used elsewhere as well: {item.code!r}")
    return kept


def _goners(block: list[Statement], spec: Proxy) -> list[Statement]:
    """The statements that start, watch and end the proxy."""
    port = _variable(spec.port)
    patterns = [rf"{SETS}{port}=.*"] if port else []
    patterns += [
        rf"{SETS}{NAME}=\$!",
        r"trap\s.*\bkill\b.*\s(?:EXIT|0)",
        r"sleep\s+[\d.]+",
        rf"{SETS}\w*(?i:socat)\w*=.*",
    ]
    one = re.compile(rf"(?:{'|'.join(patterns)})(?:\s+#.*)?")
    gone, depth = [], 0
    for item in block[:-1]:
        opens = bool(re.match(r"if\s", item.code))
        if depth or (opens and re.match(r"if\s.*socat", item.code, re.I)):
            if not opens and not BRANCH.fullmatch(item.code):
                raise Unknown(f"the search for socat has {item.code!r} in it")
            gone.append(item)
            depth += opens - bool(re.search(r"(?:^|[;\s])fi$", item.code))
        elif _socat(item.code) or one.fullmatch(item.code) or all(map(one.fullmatch, re.split(r"\s*;\s*", item.code))):
            gone.append(item)
    return gone


def _is_client(code: str) -> bool:
    return bool(re.match(r"""(?:exec\s+)?["']?[\w./${}-]*dbclient[\w}]*["']?\s""", code, re.I))


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


def _start(client: Statement, spec: Proxy, proxy: bool, statements: list[Statement]) -> str:
    """The statement that starts dbclient in the new way."""
    if len(re.findall(_option(spec.port), client.text)) != 1:
        raise Unknown("dbclient has more than one -p")
    before, uds, port = _transport(spec.words, statements)
    if not proxy:
        command = " ".join(_quoted_again(word) for word in [*before, uds, port])
        return re.sub(_option(spec.port), lambda _: f'-J "{command}"', client.text)
    # The bash that runs the script, where nothing else was named: an image may have no shell of its own.
    if not re.match(r"exec\s|\S*[/$]", client.code):
        raise Unknown("dbclient may be a function here, which only a shell can call")
    words = [*(before[:-1] or ["$BASH"]), _sibling(before[-1]), "proxy", uds, port, "--"]
    prefix = "".join(f"{_quoted(word)} " for word in words)
    text = re.sub(_option(spec.port), lambda _: "-p {port}", client.text)
    return re.sub(r"^([ \t]*(?:exec[ \t]+)?)", lambda match: match.group() + prefix, text, count=1)


def _transport(words: list[str], statements: list[Statement]) -> tuple[list[str], str, str]:
    """The transport's program (and interpreter), the UDS and the port that socat's command names."""
    odd = next((word for word in words if not PLAIN.fullmatch(word)), None)
    if odd is not None or len(words) < 3:
        raise Unknown(f"socat runs {' '.join(words)!r}, not the transport with a socket and a port")
    *before, uds, port = words
    if not all(map(INTERPRETER.fullmatch, before[:-1])):
        raise Unknown(f"socat runs the transport by {' '.join(before[:-1])!r}, which is no python3, bash or sh")
    program = before[-1]
    name = DYNAMIC.fullmatch(program) and _variable(program)
    if name:
        values = [item.code for item in statements if re.match(rf"{SETS}{name}=", item.code)]
        program = values[-1].strip("\"'") if values else ""
    if not program.endswith(f"/{TRANSPORT}"):
        raise Unknown(f"socat runs {before[-1]!r}, which is not known to be {TRANSPORT}")
    return before, uds, port


def _quoted_again(word: str) -> str:
    """A word inside of double quotes that a second shell will read: ``${NAME@Q}`` (bash 4.4) quotes for that one."""
    return DYNAMIC.sub(lambda match: f"${{{_variable(match.group())}@Q}}", word)


def _quoted(word: str) -> str:
    return f'"{word}"' if "$" in word else word


def _sibling(program: str) -> str:
    """The launcher `fastvsock` beside the transport."""
    folder, slash, _ = program.rpartition("/")
    return f"{folder}/fastvsock" if slash else f"${{{_variable(program)}%/*}}/fastvsock"
