"""An agent, and the ways that lead to it."""

from collections.abc import Iterator

import pytest

from support.channels import Guest, agent_on


@pytest.fixture(scope="session", params=["splice", "copy"])
def engine(request: pytest.FixtureRequest) -> str:
    """Each engine in turn, of the agent and of the client alike."""
    return str(request.param)


@pytest.fixture(scope="session")
def guest(engine: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Guest]:
    """An agent on a Unix socket of its own."""
    with agent_on(tmp_path_factory.mktemp("guest") / "agent.sock", engine=engine) as guest:
        yield guest
