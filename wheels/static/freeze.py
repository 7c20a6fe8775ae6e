"""The modules of a program as C: frozen.c with frozen.bin (bytecode), and builtin.c (the table of modules in C).

`python freeze.py SOURCE OPTIONAL START OUT`, run by the CPython whose bytecode is wanted, and with the standard
library alone. SOURCE has the package `fastvsock`; OPTIONAL is the Setup file that names the extension modules to link
only where they are imported; START becomes the module that the program's main() imports. Which modules there are is
computed: all of the package, and all that those import, from anywhere in their code. What the standard library would
import for purposes that are not ours is kept out by UNWANTED.
"""

import ast
import encodings
import json
import marshal
import os
import subprocess
import sys
from encodings.aliases import aliases
from modulefinder import ModuleFinder
from pathlib import Path

PACKAGE = "fastvsock"
HERE = Path(__file__).resolve().parent
LIBRARY = os.path.dirname(os.__file__)
START = "_fastvsock_start"  # the name by which plain.c imports it
FIRST = f"{PACKAGE}.runcvm_vsock_connect"

# What the interpreter itself imports by name, from C: importlib's parts, codecs, and what builds on those.
INTERPRETER = (
    "codecs",
    "copyreg",
    "encodings.aliases",
    "encodings.ascii",
    "encodings.latin_1",
    "encodings.punycode",
    "encodings.utf_8",
    "importlib._bootstrap",
    "importlib._bootstrap_external",
    "io",
    "traceback",
    "warnings",
)
BOOTSTRAP = {  # what initialisation looks for in a table of its own, and under which name
    "importlib._bootstrap": "_frozen_importlib",
    "importlib._bootstrap_external": "_frozen_importlib_external",
}
ALIASES = {"os.path": "posixpath"}
REPLACED = {"encodings.idna": HERE / "idna.py"}  # the whole codec wants a megabyte of tables

# The standard library imports these for other systems, for debugging, for its own tests and tools, or where they are
# there. The package itself may import each of them: then it is linked like everything else.
UNWANTED = (
    "_aix_support",
    "_bootsubprocess",
    "_osx_support",
    "asyncio.proactor_events",
    "asyncio.windows_events",
    "asyncio.windows_utils",
    "bdb",
    "bz2",
    "cmd",
    "code",
    "concurrent.futures.process",
    "ctypes",
    "distutils",
    "doctest",
    "email",
    "encodings.mbcs",
    "ftplib",
    "getopt",
    "gzip",
    "http",
    "importlib.metadata",
    "importlib.readers",
    "importlib.resources",
    "lzma",
    "multiprocessing",
    "nturl2path",
    "pdb",
    "pickle",
    "plistlib",
    "pydoc",
    "ssl",
    "test",
    "tkinter",
    "tracemalloc",
    "unicodedata",
    "unittest",
    "urllib.request",
    "webbrowser",
    "xml",
    "xmlrpc",
    "zipimport",  # initialisation would import it, if it were there
)

# What Modules/config.c calls the function of a module that is not named as the others are.
INIT = {
    "_warnings": "_PyWarnings_Init",
    "builtins": "NULL",
    "marshal": "PyMarshal_Init",
    "sys": "NULL",
}

# These take the place of Python/frozen.c and of what deep-freezing would make, by coming first in the link.
FROZEN = """\
#include <Python.h>
#include "internal/pycore_import.h"

static const unsigned char code[] = {{
#embed "frozen.bin"
}};

static const struct _frozen bootstrap[] = {{
{boot}    {{NULL}}
}};
const struct _frozen *_PyImport_FrozenBootstrap = bootstrap;

static const struct _frozen library[] = {{
{rest}    {{NULL}}
}};
const struct _frozen *_PyImport_FrozenStdlib = library;

static const struct _frozen none[] = {{{{NULL}}}};
const struct _frozen *_PyImport_FrozenTest = none;
const struct _frozen *PyImport_FrozenModules = NULL;

static const struct _module_alias aliases[] = {{
{aliases}    {{NULL}}
}};
const struct _module_alias *_PyImport_FrozenAliases = aliases;

int _Py_Deepfreeze_Init(void) {{ return 0; }}
void _Py_Deepfreeze_Fini(void) {{}}
"""
BUILTIN = """\
#include <Python.h>

{declared}
struct _inittab _PyImport_Inittab[] = {{
{rows}    {{NULL}}
}};
"""
OPTIONAL_IMPORTS = ("ctypes", "prometheus_client")  # of the package, which goes on without them


def main(source: Path, optional: Path, start: Path, out: Path) -> None:
    """Write the files into `out`, and print what is in them as JSON."""
    own = modules_of(source)
    files, builtin = closure(source, own)
    extensions = [name_of(source, path) for path in sorted((source / PACKAGE).rglob("*.pyx"))]
    files |= {START: start} | REPLACED
    first = [name for name in (START, *imported_by_start(source)) if name in files]
    codes = {name: code_of(name, files[name]) for name in dict.fromkeys([*first, *sorted(files)])}
    packages = {name for name, path in files.items() if path.name == "__init__.py"}
    (out / "frozen.bin").write_bytes(b"".join(codes.values()))
    (out / "frozen.c").write_text(frozen_table(codes, packages))
    choice = {line.split()[0] for line in optional.read_text().splitlines() if line[:1] not in ("", "#", "*")}
    linked = [name for name in sys.builtin_module_names if name not in choice or name in builtin]
    (out / "builtin.c").write_text(builtin_table(linked, extensions))
    print(json.dumps({"frozen": sorted(codes), "builtin": sorted([*linked, *extensions]), "own": own}))


def modules_of(source: Path) -> list[str]:
    """Every module of the package in Python, but for what runs it with `python -m`."""
    paths = sorted((source / PACKAGE).rglob("*.py"))
    return [name_of(source, path) for path in paths if path.name != "__main__.py"]


def name_of(source: Path, path: Path) -> str:
    """The dotted name of a file below `source`."""
    return ".".join(path.relative_to(source).with_suffix("").parts).removesuffix(".__init__")


def closure(source: Path, own: list[str]) -> tuple[dict[str, Path], set[str]]:
    """The modules in Python that the package needs, with their files, and the names of those in C.

    Raises `SystemExit` where the package itself imports something that cannot be linked.
    """
    direct = {name for name in imported_by(source / PACKAGE) if name.partition(".")[0] not in OPTIONAL_IMPORTS}
    unwanted = [name for name in UNWANTED if not any(f"{one}.".startswith(f"{name}.") for one in direct)]
    finder = ModuleFinder([str(source), LIBRARY], excludes=[*unwanted, *REPLACED])
    for name in (*own, *INTERPRETER, *codecs_named_in(source / PACKAGE)):
        finder.import_hook(name)
    missing = direct - finder.modules.keys() - ALIASES.keys()
    if missing:
        raise SystemExit(f"{PACKAGE} imports what cannot be linked into a static program: {', '.join(sorted(missing))}")
    found = finder.modules.items()
    files = {name: Path(module.__file__) for name, module in found if module.__file__}  # type: ignore[attr-defined]
    return files, finder.modules.keys() - files.keys()


def imported_by_start(source: Path) -> list[str]:
    """The modules that the start of a connection imports: the interpreter looks through its table from the front."""
    words = f"import sys; sys.path.insert(0, sys.argv[1]); import {FIRST}; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-S", "-P", "-B", "-c", words, source], stdout=subprocess.PIPE, check=True)
    return done.stdout.decode().split()


def imported_by(package: Path) -> set[str]:
    """The modules of other packages that a package's files name in their import statements, wherever these are."""
    found: set[str] = set()
    for path in sorted(package.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_bytes(), path)):
            if isinstance(node, ast.Import):
                found |= {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and not node.level and node.module:
                found.add(node.module)
    return {name for name in found if name.partition(".")[0] != PACKAGE}


def codecs_named_in(package: Path) -> set[str]:
    """The modules of the codecs whose names stand in a package's files: no import statement names these."""
    found = set()
    for path in sorted(package.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_bytes(), path)):
            if isinstance(node, ast.Constant) and isinstance(node.value, str) and node.value.isascii():
                name = encodings.normalize_encoding(node.value.lower())
                found.add(f"encodings.{aliases.get(name, name)}")
    files = {f"encodings.{path.stem}" for path in Path(encodings.__file__).parent.glob("*.py")}
    return (found & files) - REPLACED.keys() - {"encodings.__init__"}


def code_of(name: str, path: Path) -> bytes:
    """A module's code, as the interpreter loads it.

    Nothing reads docstrings in a program. The package's data classes keep theirs: `dataclass` would make up others,
    slowly, in their place. Its assertions stay too.
    """
    tree = ast.parse(path.read_bytes())
    ours = name.partition(".")[0] == PACKAGE
    for node in ast.walk(tree) if ours else ():
        if isinstance(node, ast.ClassDef) and node.decorator_list:
            continue
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)) and ast.get_docstring(
            node
        ):
            node.body[0] = ast.copy_location(ast.Pass(), node.body[0])
    code = compile(tree, f"<frozen {name}>", "exec", dont_inherit=True, optimize=0 if ours else 2)
    return marshal.dumps(code)


def frozen_table(codes: dict[str, bytes], packages: set[str]) -> str:
    """The C source of the interpreter's tables of frozen modules. Raises `SystemExit` where one has no bootstrap."""
    rows, offset = {}, 0
    for name, code in codes.items():
        rows[name] = f"code + {offset}, {len(code)}, {int(name in packages)}, NULL"
        offset += len(code)
    rows |= {alias: rows[name] for alias, name in ALIASES.items()}
    boot = "".join(f'    {{"{alias}", {rows.pop(name)}}},\n' for name, alias in BOOTSTRAP.items())
    rest = "".join(f'    {{"{name}", {row}}},\n' for name, row in rows.items())
    aliases = ALIASES | {alias: name for name, alias in BOOTSTRAP.items() if alias != name}
    names = "".join(f'    {{"{alias}", "{name}"}},\n' for alias, name in aliases.items())
    return FROZEN.format(boot=boot, rest=rest, aliases=names)


def builtin_table(linked: list[str], extensions: list[str]) -> str:
    """The C source of the interpreter's table of modules in C."""
    functions = {name: INIT.get(name, f"PyInit_{name}") for name in linked}
    functions |= {name: f"PyInit_{name.rpartition('.')[2]}" for name in extensions}
    declared = "".join(f"extern PyObject *{one}(void);\n" for one in functions.values() if one != "NULL")
    return BUILTIN.format(declared=declared, rows="".join(f'    {{"{n}", {f}}},\n' for n, f in functions.items()))


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
