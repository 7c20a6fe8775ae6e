"""The start from an image: nothing of the process that made it is left in it, and each new process has its own."""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from support import ECHO, HANG, ROOT, Endpoint, pattern, python
from wheels.common import Failed
from wheels.static import build, elf

KINDS = ["image"]
SIZE = 1_000_000
Inside = Callable[..., str]

# What is imported before the image is made, beside the package. Each module here was read: none looks at its process
# at that time, but os and posix (the environment) and _signal, which image.c renews. Read a new one before adding it.
MODULES = """
__main__ _abc _codecs _collections_abc _fastvsock_start _frozen_importlib _frozen_importlib_external _imp _io _signal
_socket _stat _thread _warnings _weakref abc builtins codecs cython_runtime encodings encodings.aliases encodings.utf_8
errno fcntl gc genericpath io marshal os os.path posix posixpath select stat sys termios time
"""
# What the package has in the image, imported where a look at the process fails.
BLIND = """
import contextlib, importlib, os, sys, time, types, _signal
sys.path.insert(0, sys.argv[1])
from wheels.static.start import IMAGE
for name in sys.argv[2].split():
    with contextlib.suppress(ImportError):
        importlib.import_module(name)

def refuse(*arguments, **more):
    raise AssertionError("it looks at its process")

for module in os, time, _signal:
    for name, value in vars(module).items():
        if isinstance(value, types.BuiltinFunctionType):
            setattr(module, name, refuse)
del os.environ, os.environb
sys.argv = ['']  # as image.c has it
for name in IMAGE:
    importlib.import_module(name)
print(*IMAGE)
"""
FILES = """
import _io, _socket, gc
gc.unfreeze()
print(*sorted(it.fileno() for it in gc.get_objects() if isinstance(it, (_io.FileIO, _socket.socket))))
"""
TWICE = """
import os, sys
class Environment:
    def __len__(self): return 2
    def __getitem__(self, name): raise KeyError(name)
    def keys(self): return ["NAME", "NAME"]
    def values(self): return ["first", "second"]
os.execve(sys.argv[1], sys.argv[1:], Environment())
"""
IGNORED = """
import signal
print(*(number for number in range(1, 32) if signal.getsignal(number) == signal.SIG_IGN))
"""


def test_the_modules_in_the_image_are_known(inside: Inside) -> None:
    names = inside("import sys; print(*sorted(sys.modules))").split()
    assert [name for name in names if not name.startswith("fastvsock")] == MODULES.split()


def test_no_module_of_the_package_in_the_image_looks_at_its_process_while_it_is_imported() -> None:
    assert "fastvsock.cli.exec" in python(BLIND, str(ROOT), MODULES)


def test_the_environment_is_the_new_process_own(inside: Inside) -> None:
    told = json.loads(inside("import json, os; print(json.dumps(dict(os.environ)))", LANG="C", NAME="value"))
    assert told == {"LANG": "C", "NAME": "value"}


def test_the_thread_is_the_new_process_main_thread(inside: Inside) -> None:
    code = "import _signal, _thread, sys; _signal.signal(10, _signal.SIG_DFL)"  # a ValueError in any other thread
    told = inside(f"{code}; print(*sys._current_frames(), _thread.get_ident())").split()
    assert told[:-1] == told[1:]


def test_no_file_and_no_socket_is_left(inside: Inside) -> None:
    assert inside(FILES) == "1 2\n"  # the probe's own


def test_no_descriptor_is_open(inside: Inside) -> None:
    assert inside("import os; print(*sorted(os.listdir('/proc/self/fd')))") == "0 1 2 3\n"  # 3 reads the folder


def test_a_thread_can_be_started_and_joined(inside: Inside) -> None:
    code = "import threading; t = threading.Thread(target=print, args=['there']); t.start(); t.join()"
    assert inside(code) == "there\n"


def test_the_time_zone_is_not_that_of_the_build(inside: Inside) -> None:
    code = "import time; print(time.strftime('%H %Z', time.localtime(0)), *time.tzname)"
    assert inside(code, TZ="EAST-5") == "05 EAST UTC UTC\n"  # the module's constants, for which nothing here asks


def test_signals_that_are_ignored_are_seen_and_no_others_are(probe: Path) -> None:
    for numbers in ([], [signal.SIGHUP], [signal.SIGINT, signal.SIGQUIT, signal.SIGUSR1]):
        words = ["sh", "-c", f"trap '' {' '.join(map(str, map(int, numbers)))}; exec \"$@\"", "sh", str(probe), IGNORED]
        words = words if numbers else words[4:]
        done = subprocess.run(words, capture_output=True, timeout=HANG, check=True)
        assert [*map(int, done.stdout.split())] == sorted({*numbers, signal.SIGPIPE, signal.SIGXFSZ})


def test_random_numbers_are_not_the_same_in_each_process(inside: Inside) -> None:
    code = "import os, random; print(os.urandom(8), random.random())"
    assert inside(code) != inside(code)


def test_strings_have_the_same_hash_in_each_process_and_only_in_connect(inside: Inside, fastvsock: Path) -> None:
    """No dictionary of a connection has keys from the other side: what could feed one gets a secret seed."""
    assert inside("print(hash('fastvsock'))") == inside("print(hash('fastvsock'))")


def test_any_other_command_has_a_secret_seed_and_streams(probe: Path, tmp_path: Path) -> None:
    other = tmp_path / "fastvsock"
    os.link(probe, other)
    code = "import sys; print(hash('fastvsock'), sys.stdin.name, sys.stderr.name)"
    told = [subprocess.run([other, code], capture_output=True, timeout=HANG, check=True).stdout for _ in range(2)]
    assert told[0] != told[1]
    assert told[0].endswith(b" <stdin> <stderr>\n")


@pytest.mark.parametrize(
    ("words", "image"),
    [
        (["runcvm-vsock-connect"], True),
        (["./runcvm-vsock-connect", "--version"], True),
        (["fastvsock", "connect"], True),
        (["fastvsock", "exec"], True),
        (["any-name", "exec"], True),
        (["fastvsock", "exec-"], False),
        (["fastvsock", "cp"], False),
        (["fastvsock", "agent"], False),
        (["fastvsock", "--", "exec"], False),
        (["runcvm-vsock-connect-2"], False),
    ],
    ids=lambda words: " ".join(words) if isinstance(words, list) else "",
)
def test_what_starts_at_every_exec_starts_from_the_image(probe: Path, words: list[str], image: bool) -> None:
    code = "import sys; print(sys.stdin is None, sys.argv[:-1])"
    done = subprocess.run([*words, code], executable=probe, capture_output=True, text=True, timeout=HANG, check=True)
    assert done.stdout == f"{image} {words}\n"


def test_a_child_that_is_forked_goes_on(inside: Inside) -> None:
    code = "import os; pid = os.fork(); pid or os._exit(len([0] * 9) - 2); print(os.waitpid(pid, 0)[1] >> 8)"
    assert inside(code) == "7\n"


def test_debugging_starts_the_ordinary_way(inside: Inside) -> None:
    assert inside("import sys; print(sys.stdin.name)", FASTVSOCK_DEBUG="1") == "<stdin>\n"
    assert inside("import sys; print(sys.stdin)") == "None\n"


@pytest.mark.parametrize(
    "before",
    [
        ["setarch", "--addr-no-randomize"],
        ["sh", "-c", 'ulimit -s 256; exec "$@"', "sh"],
        ["sh", "-c", 'ulimit -s unlimited; exec "$@"', "sh"],
        ["sh", "-c", 'ulimit -v 30000; exec "$@"', "sh"],
        ["sh", "-c", 'ulimit -n 16; exec "$@"', "sh"],
        ["env", "-i"],
        ["nice", "-n", "19"],
    ],
    ids=lambda words: " ".join(words[:3]),
)
def test_a_connection_is_moved_whole_under(before: list[str], connect: Path, endpoint: Endpoint) -> None:
    if not shutil.which(before[0]):
        pytest.skip(f"{before[0]} is not here")
    words = [*before, str(connect), endpoint.uds, str(ECHO)]
    done = subprocess.run(words, input=pattern(SIZE), capture_output=True, timeout=HANG, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, pattern(SIZE), b"")


def test_it_starts_with_its_descriptors_closed(connect: Path) -> None:
    words = ["sh", "-c", 'exec "$@" <&- >&- 2>&-', "sh", str(connect), "--version"]
    assert subprocess.run(words, timeout=HANG, check=False).returncode == 0


def test_a_huge_environment_is_whole(inside: Inside) -> None:
    values = {f"NAME_{i}": "x" * 1000 for i in range(1000)}
    told = json.loads(inside("import json, os; print(json.dumps(dict(os.environ)))", **values))
    assert told == values


def test_an_environment_that_is_not_text_is_kept(probe: Path) -> None:
    code = "import os; print(os.environb[b'NAME'], ascii(os.environ['NAME']))"
    done = subprocess.run([probe, code], env={b"NAME": b"\xff"}, capture_output=True, timeout=HANG, check=True)
    assert done.stdout == b"b'\\xff' '\\udcff'\n"


def test_of_two_variables_of_one_name_the_first_counts(probe: Path) -> None:
    words = [sys.executable, "-c", TWICE, str(probe), "import os; print(os.environ)"]
    done = subprocess.run(words, capture_output=True, timeout=HANG, check=True)
    assert done.stdout == b"environ({'NAME': 'first'})\n"


def test_a_thousand_starts_are_alike(connect: Path) -> None:
    for _ in range(1000):
        done = subprocess.run([connect, "--version"], capture_output=True, timeout=HANG, check=False)
        assert (done.returncode, done.stderr) == (0, b"")


@pytest.mark.parametrize(
    "before",
    [[], ["setarch", "--addr-no-randomize"], ["sh", "-c", 'trap "" HUP PIPE USR1; exec env -i TZ=UTC0 "$@"', "sh"]],
    ids=["with ASLR", "without ASLR", "with signals ignored"],
)
def test_a_first_start_without_emulation_gives_the_same_image(
    machine: str, program: build.Program, before: list[str], tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    made = program.path.parent
    bare = made / "bare"
    memory = tmp_path / "memory"
    env = {"TZ": "UTC0"}
    subprocess.run([*before, bare, memory], env=env, cwd="/", stdin=subprocess.DEVNULL, timeout=HANG, check=True)
    linked = bare.read_bytes()
    assert elf.with_memory(linked, memory.read_bytes()[8:], build.MARK) == program.path.read_bytes()


def test_the_build_looks_at_each_call_of_the_first_start(
    machine: str, program: build.Program, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bare = Path(shutil.copy(program.path.with_name("bare"), tmp_path))
    memory = build.first_start(bare, machine)
    assert elf.with_memory(bare.read_bytes(), memory[8:], build.MARK) == program.path.read_bytes()
    monkeypatch.setattr(build, "CALLS", build.CALLS - {"clock_gettime"})
    with pytest.raises(Failed, match="it called clock_gettime"):
        build.first_start(bare, machine)


@pytest.mark.parametrize(
    "line",
    [
        "7 mmap(0,4096) = 0",
        '7 openat(3,"/etc/localtime") = 5',
        "7 getrandom(1,2) = 2",
        "7 socket(1,2) = 4",
        "7 Unknown syscall 999",
    ],
)
def test_a_first_start_that_leaves_more_than_memory_fails_the_build(line: str) -> None:
    good = '7 arch_prctl(1,2) = 0\n7 open("memory") = 3\n7 write(3,1,2) = 2\n7 exit_group(0)\n'
    build.check_calls(good)
    with pytest.raises(Failed, match="the image holds more than memory"):
        build.check_calls(f"{good}{line}\n")


def test_memory_of_another_program_is_refused(program: build.Program) -> None:
    linked = (program.path.parent / "bare").read_bytes()
    with pytest.raises(Failed, match="not this program's"):
        elf.with_memory(linked, bytes(random.Random(1).randbytes(100)), build.MARK)
