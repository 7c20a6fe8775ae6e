"""An error that nobody thought of."""

import os
import subprocess
import sys

import pytest

from support import HANG
from support.sentences import sentence

PORT = 5003

# The command with one of its parts broken, which is how an error that nobody thought of looks.
BROKEN = """
import fastvsock.handshake
def fail(*arguments): raise {error}
fastvsock.handshake.connect = fail
from fastvsock.runcvm_vsock_connect import main
main()
"""


@pytest.mark.parametrize("error", ["ZeroDivisionError('so')", "OSError(5, 'so')"])
@pytest.mark.parametrize("debug", [False, True])
def test_only_debugging_shows_a_traceback(error: str, debug: bool) -> None:
    done = subprocess.run(
        [sys.executable, "-c", BROKEN.format(error=error), "v.sock", str(PORT)],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        env={**os.environ, "FASTVSOCK_DEBUG": "1" if debug else ""},
        timeout=HANG,
        check=False,
    )
    if debug:
        assert (done.returncode, done.stdout) == (1, b"")
        assert done.stderr.startswith(b"Traceback (most recent call last):")
        assert b"so" in done.stderr.splitlines()[-1]
    else:
        sentence(done, "unexpected", error.partition("(")[0], "so", "FASTVSOCK_DEBUG=1")
