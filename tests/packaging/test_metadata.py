"""What the package says of itself: one version, and that it needs nothing else."""

import sys

import fastvsock
from support.packages import PROJECT, run
from wheels import common


def test_there_is_one_version() -> None:
    assert "version" not in PROJECT["project"], "it stands in src/fastvsock/__init__.py alone"
    assert common.version() == fastvsock.__version__
    for module, name in (("fastvsock", "fastvsock"), ("fastvsock.runcvm_vsock_connect", "runcvm-vsock-connect")):
        done = run(sys.executable, "-m", module, "--version")
        assert (done.returncode, done.stdout) == (0, f"{name} {fastvsock.__version__}\n")


def test_it_needs_nothing_but_the_standard_library() -> None:
    assert PROJECT["project"].get("dependencies", []) == []
