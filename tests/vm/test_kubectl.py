"""The real kubectl before a real guest: RunCVM's exec script, a channel to the agent, busybox' `tar`, no ssh."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from support import PROGRAM, called, kubectl
from support.apiserver import NAME
from support.channels import REAL_GUEST as GUEST
from support.channels import exec_in
from support.kubectl import Pod
from support.ways import Channels, Exec

pytestmark = [
    pytest.mark.skipif(not GUEST.uds, reason="by design: runs inside the VM harness"),
    pytest.mark.skipif(bool(GUEST.uds) and not PROGRAM, reason="by design: installs the static binary"),
]

ODD_NAME = 'it\'s "Ä … .txt"\nx'


class ToFirecracker(Channels):
    """RunCVM's exec script as the static binary leaves it, to the guest that the tests share."""

    def binary(self, folder: Path) -> Path:
        """The program under test."""
        return Path(*called("fastvsock"))

    @contextmanager
    def ready(self, folder: Path) -> Iterator[Exec]:
        """A bundle; the guest is there."""
        yield self.lead_to(GUEST.uds, folder)


@pytest.fixture(scope="module")
def pod(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pod]:
    """A pod behind the API server."""
    way, program, folder = ToFirecracker(), kubectl.program(), tmp_path_factory.mktemp("pod")
    with way.ready(folder) as execution, kubectl.pod(way, execution, program, folder) as found:
        yield found


def test_exec_keeps_streams_and_status_apart(pod: Pod) -> None:
    done = pod.execute("sh", "-c", "cat; echo err >&2; exit 7", input=b"some bytes")
    assert (done.returncode, done.stdout) == (7, b"some bytes")
    assert done.stderr.startswith(b"err\n")


def test_words_of_any_bytes_arrive_as_they_are(pod: Pod) -> None:
    assert pod.execute("printf", "<%s>", ODD_NAME).stdout == os.fsencode(f"<{ODD_NAME}>")


def test_a_file_is_copied_there_and_back(pod: Pod, tmp_path: Path) -> None:
    source, back, there = tmp_path / "source", tmp_path / "back", f"/tmp/{ODD_NAME}"
    source.write_bytes(os.urandom(300_001))
    pod.copy(source, f"{NAME}:{there}")
    assert exec_in(GUEST, "cat", there).stdout == source.read_bytes()
    pod.copy(f"{NAME}:{there}", back, "--retries=2")
    assert back.read_bytes() == source.read_bytes()
    exec_in(GUEST, "rm", there)
