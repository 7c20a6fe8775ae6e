"""What the umbrella command says of errors that nobody thought of, and of Ctrl-C."""

import os
import signal
import subprocess
import sys
from functools import partial

import pytest

from support import HANG
from support.umbrella import BROKEN

# Ctrl-C comes when a module is imported.
EARLY = """
import os, signal, sys
from fastvsock import cli
module, *sys.argv[1:] = sys.argv[1:]
class Interrupt:
    def find_spec(name, *_):
        if name == module:
            os.kill(os.getpid(), signal.SIGINT)
sys.meta_path.insert(0, Interrupt)
cli.main()
"""


@pytest.mark.parametrize("error", ["ZeroDivisionError('so')", "OSError(5, 'so')", "ValueError('so\\n  and so')"])
@pytest.mark.parametrize("debug", [False, True])
def test_only_debugging_shows_a_traceback(error: str, debug: bool) -> None:
    done = subprocess.run(
        [sys.executable, "-c", BROKEN.format(error=error), "doctor"],
        capture_output=True,
        env={**os.environ, "FASTVSOCK_DEBUG": "1" if debug else ""},
        timeout=HANG,
        check=False,
    )
    assert (done.returncode, done.stdout) == (1, b"")
    if debug:
        assert done.stderr.startswith(b"Traceback (most recent call last):")
    else:
        line = done.stderr.decode()
        assert line.startswith(f"fastvsock: unexpected {error.partition('(')[0]}: ")
        assert line.endswith("so (FASTVSOCK_DEBUG=1 shows where)\n")
        assert line.count("\n") == 1


@pytest.mark.parametrize("module", ["fastvsock.cli.doctor", "fastvsock.diagnostics.machine"])
def test_ctrl_c_anywhere_ends_it_without_a_traceback(module: str) -> None:
    words = [sys.executable, "-c", EARLY, module, "doctor"]
    done = subprocess.run(words, capture_output=True, timeout=HANG, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (-signal.SIGINT, b"", b"")


def test_ctrl_c_is_ignored_where_it_was() -> None:
    done = subprocess.run(
        [sys.executable, "-c", EARLY, "fastvsock.cli.doctor", "doctor", "--help"],
        preexec_fn=partial(signal.signal, signal.SIGINT, signal.SIG_IGN),
        capture_output=True,
        timeout=HANG,
        check=False,
    )
    assert (done.returncode, done.stdout[:23]) == (0, b"usage: fastvsock doctor")
