"""An agent, and the ways that lead to it."""

from collections.abc import Iterator
from contextlib import ExitStack

import pytest

import fastvsock
from support.channels import REAL_GUEST, Guest, agent_on
from support.rig import Rig


@pytest.fixture(scope="session", params=["splice", "copy"])
def engine(request: pytest.FixtureRequest) -> str:
    """Each engine in turn, of the agent and of the client alike."""
    return str(request.param)


@pytest.fixture(scope="session")
def guest(engine: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Guest]:
    """An agent: real Firecracker's guest where there is one, else on a Unix socket of its own."""
    if REAL_GUEST.uds:
        yield REAL_GUEST
        return
    with agent_on(tmp_path_factory.mktemp("guest") / "agent.sock", engine=engine) as guest:
        yield guest


@pytest.fixture(params=["splice", "copying core", "copy"])
def rig(request: pytest.FixtureRequest) -> Iterator[Rig]:
    """With each twin; the core's copies too, which serve where a socket does not splice well."""
    engine = "copy" if request.param == "copy" else "splice"
    with ExitStack() as stack:
        yield Rig(engine, stack, splices=request.param == "splice")


@pytest.fixture
def over_there(guest: Guest, engine: str) -> fastvsock.Guest:
    """The same, for Python."""
    return fastvsock.Guest(guest.uds, engine=engine)
