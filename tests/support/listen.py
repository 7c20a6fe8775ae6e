"""`fastvsock listen` for a port of the host, as the tests of it start it."""

from collections.abc import Iterator
from contextlib import contextmanager

from support import Child, started
from support.services import service_command

PORT = 5201


def listening_on(uds: str, *arguments: str, engine: str = "auto") -> list[str]:
    """The command line; the arguments behind UDS and PORT may be options too."""
    return service_command("listen", uds, str(PORT), *arguments, engine=engine)


@contextmanager
def on_stdio(uds: str, engine: str = "auto") -> Iterator[Child]:
    """The command that makes a connection its stdin and stdout, ready for it."""
    with started(listening_on(uds, "--ready-fd", "2", engine=engine)) as child:
        assert child.stderr.readline().decode() == f"unix:{uds}_{PORT}\n"
        yield child
