"""A pod for kubectl, reached by each of the ways in turn."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from support import kubectl
from support.kubectl import Pod
from support.ways import WAYS, Exec, Way


@pytest.fixture(scope="session")
def program() -> Path:
    """The real kubectl."""
    return kubectl.program()


@pytest.fixture(scope="session", params=WAYS, ids=lambda way: way.name)
def way(request: pytest.FixtureRequest) -> Way:
    """Each way into the guest in turn."""
    way: Way = request.param
    if reason := way.missing():
        pytest.skip(reason)
    return way


@pytest.fixture(scope="session")
def reached(way: Way, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Exec]:
    """The guest, reached by that way."""
    with way.ready(tmp_path_factory.mktemp(way.name)) as execution:
        yield execution


@pytest.fixture(scope="session")
def pod(way: Way, reached: Exec, program: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pod]:
    """A pod behind the API server."""
    with kubectl.pod(way, reached, program, tmp_path_factory.mktemp("pod")) as found:
        yield found
