"""What is in the binary: all of the package, all that it imports, and nothing of the machine that built it."""

import errno
import json
import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from support import HANG
from wheels.common import ROOT, cache, sha256
from wheels.static import build

SECRET = "a value of the build's environment"  # conftest.py builds it with that
LARGEST = 12_000_000  # bytes; a release's limit
ORPHAN = """
import os, subprocess
from fastvsock.services.ownership import adopt_orphans
adopt_orphans()
orphan = "exec 3<&0; (read _ <&3; exec sh -c 'echo $PPID') &"
parent = subprocess.Popen(["sh", "-c", orphan], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
parent.wait()
parent.stdin.write(b"go\\n")
parent.stdin.close()
print(int(parent.stdout.read()) == os.getpid())
"""
IMPORT_ALL = """
import importlib, json, sys, traceback
failed = {}
for name in json.loads(sys.argv[1].splitlines()[0].removeprefix('# ')):
    try:
        importlib.import_module(name)
    except ImportError as error:
        failed[name] = str(error)
print(json.dumps(failed))
"""


def test_every_module_of_the_package_is_in_it(program: build.Program) -> None:
    package = ROOT / "src" / "fastvsock"
    paths = [path.relative_to(package.parent).with_suffix("") for path in package.rglob("*.py*")]
    names = {".".join(path.parts).removesuffix(".__init__") for path in paths if path.name not in ("__main__", "py")}
    wanted = {name for name in names if "__pycache__" not in name}
    assert wanted <= {*program.frozen, *program.builtin}


def test_every_module_in_it_can_be_imported(program: build.Program, inside: Callable[..., str]) -> None:
    failed = json.loads(inside(f"# {json.dumps(program.frozen)}\n{IMPORT_ALL}"))
    assert failed == {}


def test_the_splice_engine_is_in_it(inside: Callable[..., str]) -> None:
    assert inside("from fastvsock.engines import choose; print(choose('splice'), choose('auto'))") == "splice splice\n"


def test_orphans_can_be_adopted_without_ctypes(inside: Callable[..., str]) -> None:
    assert inside(ORPHAN, PATH=os.environ["PATH"]) == "True\n"


def test_nothing_is_imported_from_the_disk(inside: Callable[..., str], tmp_path: Path) -> None:
    (tmp_path / "json.py").write_text("raise SystemExit('the module on the disk was imported')\n")
    code = "import os, sys; os.chdir(os.environ['WHERE']); import json; print(sys.path, sys.flags.isolated)"
    assert inside(code, WHERE=str(tmp_path), PYTHONPATH=str(tmp_path), PYTHONHOME=str(tmp_path)) == "[] 1\n"


def test_it_says_nothing_of_the_machine_that_built_it(program: build.Program) -> None:
    data = program.path.read_bytes()
    for place in (str(cache()), str(ROOT), str(Path.home()), os.uname().nodename, SECRET):
        if len(place) > 3:
            assert place.encode() not in data, place


def test_it_is_one_static_file_of_a_size_to_download(program: build.Program) -> None:
    headers = subprocess.run(["readelf", "-lW", program.path], capture_output=True, text=True, timeout=HANG, check=True)
    assert "INTERP" not in headers.stdout
    assert "DYNAMIC" not in headers.stdout
    assert program.path.stat().st_size <= LARGEST


def test_building_twice_gives_the_same_file(program: build.Program, machine: str, kind: str, tmp_path: Path) -> None:
    again = tmp_path / "another folder"
    again.mkdir()
    assert sha256(build.link(machine, again, kind=kind).path) == sha256(program.path)


@pytest.mark.parametrize(
    ("name", "known"),
    [
        ("localhost", b"localhost"),
        ("example.org.", b"example.org."),
        ("B\u00fccher.example", b"xn--bcher-kva.example"),
        ("\u65e5\u672c\u3002example", b"xn--wgv71a.example"),
    ],
)
def test_a_host_name_is_encoded_as_the_standard_librarys_codec_does(
    inside: Callable[..., str], name: str, known: bytes
) -> None:
    assert name.encode("idna") == known
    assert inside(f"print({name!r}.encode('idna'))") == f"{known!r}\n"
    assert inside(f"print({known!r}.decode('idna'))") == f"{known.decode('idna')}\n"


@pytest.mark.parametrize("name", ["a..b", "x" * 64, ".a"])
def test_a_host_name_with_an_empty_or_overlong_label_is_refused(inside: Callable[..., str], name: str) -> None:
    with pytest.raises(UnicodeError):
        name.encode("idna")
    code = f"try:\n    print({name!r}.encode('idna'))\nexcept UnicodeError as error:\n    print('refused:', error)"
    assert inside(code).startswith("refused:")


def test_common_system_errors_have_the_words_that_the_installation_has(inside: Callable[..., str]) -> None:
    names = ("EMFILE", "EADDRINUSE", "ENOENT", "ECONNRESET", "ENOMEM", "ENOTCONN", "ENOTSUP", "EPIPE", "ENAMETOOLONG")
    code = f"import errno, os; print([os.strerror(getattr(errno, name)) for name in {names}])"
    assert inside(code) == f"{[os.strerror(getattr(errno, name)) for name in names]}\n"
