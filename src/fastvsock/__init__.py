"""fastvsock: the fastest way to move bytes between a host and a microVM over hybrid vsock.

`connect`, `open_connection` (asyncio), `relay` and the errors are the Python interface. They are loaded on first use
(PEP 562), so that importing one module of the package does not import the rest.
"""

TYPE_CHECKING = False
if TYPE_CHECKING:
    from .api import connect as connect
    from .api import open_connection as open_connection
    from .api import relay as relay
    from .errors import BadReplyError as BadReplyError
    from .errors import BenchmarkError as BenchmarkError
    from .errors import CommandError as CommandError
    from .errors import ConnectError as ConnectError
    from .errors import ConnectionBrokenError as ConnectionBrokenError
    from .errors import DurationError as DurationError
    from .errors import EmptyPathError as EmptyPathError
    from .errors import EmulatorError as EmulatorError
    from .errors import EngineError as EngineError
    from .errors import FastvsockError as FastvsockError
    from .errors import GuestRefusedError as GuestRefusedError
    from .errors import HandshakeError as HandshakeError
    from .errors import HandshakeTimeoutError as HandshakeTimeoutError
    from .errors import NotASocketError as NotASocketError
    from .errors import PathTooLongError as PathTooLongError
    from .errors import PortError as PortError
    from .errors import RelayError as RelayError
    from .errors import SocketMissingError as SocketMissingError
    from .errors import SocketPermissionError as SocketPermissionError
    from .errors import StaleSocketError as StaleSocketError
    from .errors import StreamError as StreamError
    from .errors import UsageError as UsageError
    from .relaying import RelayResult as RelayResult

__version__ = "0.2.0.dev0"

_HOME = {"connect": "api", "open_connection": "api", "relay": "api", "RelayResult": "relaying"}
_ERRORS = (
    "BadReplyError",
    "BenchmarkError",
    "CommandError",
    "ConnectError",
    "ConnectionBrokenError",
    "DurationError",
    "EmptyPathError",
    "EmulatorError",
    "EngineError",
    "FastvsockError",
    "GuestRefusedError",
    "HandshakeError",
    "HandshakeTimeoutError",
    "NotASocketError",
    "PathTooLongError",
    "PortError",
    "RelayError",
    "SocketMissingError",
    "SocketPermissionError",
    "StaleSocketError",
    "StreamError",
    "UsageError",
)
__all__ = [*_HOME, *_ERRORS]


def __getattr__(name: str) -> object:
    home = "errors" if name in _ERRORS else _HOME.get(name)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f"{__name__}.{home}"), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
