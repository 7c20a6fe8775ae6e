"""The layout of the package: who may import whom, and what has one place only. The imports are read, not run."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from support import ROOT

PACKAGE = ROOT / "src" / "fastvsock"
# From the ground up. A room is a folder or a module of the package's root; it imports itself and what is below it.
FLOORS = (
    {"errors"},
    {"stdio"},
    {"host"},
    {"handshake", "engines"},
    {"relaying"},
    {"api", "runcvm_vsock_connect", "channels"},
    {"services", "emulator", "selfbench", "copying"},
    {"agent", "diagnostics"},
    {"runcvm"},
    {"cli"},
    {"__main__", "entry"},
)
LEVEL = {room: level for level, floor in enumerate(FLOORS) for room in floor}
ROOMS = {path.stem for path in PACKAGE.glob("*.py")} | {path.parent.name for path in PACKAGE.glob("*/__init__.py")}
MODULES = sorted(path.relative_to(PACKAGE).as_posix() for path in PACKAGE.rglob("*.py"))


def room_of(module: str) -> str:
    return module.removesuffix(".py").partition("/")[0]


def statements(tree: ast.Module) -> Iterator[ast.AST]:
    """All statements but those for type checkers, which nothing runs."""
    todo: list[ast.AST] = [tree]
    while todo:
        node = todo.pop()
        yield node
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test):
            todo += node.orelse
        else:
            todo += ast.iter_child_nodes(node)


def imported(module: str) -> Iterator[str]:
    """The modules that `module` imports, fully named; "fastvsock" too for what it takes from the package itself."""
    package = ("fastvsock", *Path(module).parts[:-1])
    for node in statements(ast.parse((PACKAGE / module).read_text())):
        if isinstance(node, ast.Import):
            yield from (name.name for name in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else ()
            source = ".".join([*base, node.module] if node.module else base)
            yield from (f"{source}.{name.name}" for name in node.names)


def rooms_imported(module: str) -> set[str]:
    names = (name.split(".") for name in imported(module))
    return {name[1] for name in names if name[0] == "fastvsock" and name[1] in ROOMS}


def test_every_room_is_on_a_floor() -> None:
    assert ROOMS - {"__init__"} == set(LEVEL)


def test_the_map_shows_the_floors() -> None:
    shown = re.findall(r"^\| ((?:`\w+`(?:, )?)+) \|", (PACKAGE / "README.md").read_text(), re.MULTILINE)
    assert [set(re.findall(r"\w+", rooms)) for rooms in shown] == list(reversed(FLOORS))


def test_the_map_names_only_files_that_exist() -> None:
    named = re.findall(r"`([\w./-]+(?:\.pyx?|/))`", (PACKAGE / "README.md").read_text())
    places = (PACKAGE, PACKAGE / "engines", ROOT, ROOT / "tests")
    assert not [name for name in named if not any((place / name).exists() for place in places)]


@pytest.mark.parametrize("module", [module for module in MODULES if module != "__init__.py"])
def test_a_module_imports_only_its_own_room_and_what_is_below(module: str) -> None:
    own = room_of(module)
    upward = {room for room in rooms_imported(module) if room != own and LEVEL[room] >= LEVEL[own]}
    assert not upward


def test_importing_the_package_imports_none_of_its_rooms() -> None:
    tree = ast.parse((PACKAGE / "__init__.py").read_text())
    assert not [node for node in tree.body if isinstance(node, (ast.Import, ast.ImportFrom))]


@pytest.mark.parametrize("module", MODULES)
def test_only_cli_parses_arguments(module: str) -> None:
    assert room_of(module) == "cli" or "argparse" not in imported(module)


@pytest.mark.parametrize("module", [module for module in MODULES if module != "errors.py"])
def test_every_exception_is_at_home_in_errors(module: str) -> None:
    classes = [node for node in ast.walk(ast.parse((PACKAGE / module).read_text())) if isinstance(node, ast.ClassDef)]
    assert not [node.name for node in classes if any(ast.unparse(base).endswith("Error") for base in node.bases)]


def test_the_packaging_names_every_folder() -> None:
    import tomllib

    named = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"]
    folders = {path.parent.relative_to(PACKAGE.parent).as_posix() for path in PACKAGE.rglob("__init__.py")}
    assert sorted(named) == sorted(folder.replace("/", ".") for folder in folders)


@pytest.mark.parametrize("folder", [".", ".ci", ".github", "bench", "src", "src/fastvsock", "wheels"])
def test_no_stray_file_is_tracked(folder: str) -> None:
    names = [path.name for path in (ROOT / folder).iterdir()]
    assert not [name for name in names if name.startswith("..") or name.isdigit()]
