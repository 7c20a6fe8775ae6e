"""fastvsock connects descriptors and sockets to ports inside a microVM, over hybrid vsock.

`connect`, `open_connection` (asyncio), `relay`, `Guest`, `AsyncGuest` and the errors are the Python interface. They are
loaded on first use (PEP 562), so that importing one module of the package does not import the rest.
"""

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from .api import connect as connect
    from .api import open_connection as open_connection
    from .api import relay as relay
    from .copying.aio import AsyncGuest as AsyncGuest
    from .copying.guest import Guest as Guest
    from .copying.result import CopyResult as CopyResult
    from .errors import *  # noqa: F403
    from .relaying import RelayResult as RelayResult

__version__ = "0.2.0"

_HOME = {"connect": "api", "open_connection": "api", "relay": "api", "RelayResult": "relaying"}
_HOME |= {"AsyncGuest": "copying.aio", "Guest": "copying.guest", "CopyResult": "copying.result"}


def __getattr__(name: str) -> "Any":
    home = "errors" if name.endswith("Error") else _HOME.get(name)
    if name == "__all__":
        return _public()
    if home is not None:
        from importlib import import_module

        found = vars(import_module(f"{__name__}.{home}")).get(name)
        if found is not None:
            return found
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def _public() -> list[str]:
    from . import errors

    return [*_HOME, *(name for name in vars(errors) if name.endswith("Error") and not name.startswith("_"))]


def __dir__() -> list[str]:
    return sorted({*globals(), "__all__", *_public()})
