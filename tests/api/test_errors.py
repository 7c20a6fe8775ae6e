"""The errors, as a caller of the package meets them."""

import copy
import os
import pickle

import pytest

import fastvsock
from fastvsock import errors
from fastvsock.copying.result import Failure

EXAMPLES: list[fastvsock.FastvsockError] = [
    fastvsock.FastvsockError("text"),
    fastvsock.UsageError("text"),
    fastvsock.EngineError("text"),
    fastvsock.UnknownEngineError("warp", "FASTVSOCK_ENGINE"),
    fastvsock.BundleError("text"),
    fastvsock.CircleError("text"),
    fastvsock.ChangedError("/opt/runcvm", "scripts/runcvm-ctr-exec"),
    fastvsock.BenchmarkError("text"),
    fastvsock.PortError("ssh"),
    fastvsock.DurationError("timeout", -1, "more than 0"),
    fastvsock.CommandError("dbclient", FileNotFoundError(2, "No such file or directory")),
    fastvsock.RelayError("text", 32),
    fastvsock.ConnectionBrokenError("text", 104),
    fastvsock.StreamError("text", 28),
    fastvsock.IdleTimeoutError("text", 110),
    fastvsock.ChannelError("text"),
    fastvsock.ProtocolError("text"),
    fastvsock.AgentTimeoutError(10.0),
    fastvsock.ChannelBrokenError("3 bytes up and 5 down", 104),
    fastvsock.UnansweredSignalError("SIGINT", 2.5),
    fastvsock.StartError("group", 0, "wheel"),
    fastvsock.StartMissingError("command", 2, "dbclient"),
    fastvsock.StartPermissionError("directory", 13, "/root"),
    fastvsock.StartRefusedError("address", 111, "tcp:127.0.0.1:80"),
    fastvsock.EmulatorError("text", 98),
    fastvsock.ConnectError("/run/v.sock", 5003, "detail"),
    fastvsock.SocketMissingError("/run/v.sock", 5003),
    fastvsock.EmptyPathError("", 5003),
    fastvsock.NotASocketError("/run/v.sock", 5003, "a FIFO"),
    fastvsock.SocketPermissionError("/run/v.sock", 5003),
    fastvsock.StaleSocketError("/run/v.sock", 5003),
    fastvsock.PathTooLongError("/run/v.sock", 5003),
    fastvsock.HandshakeError("/run/v.sock", 5003, "detail"),
    fastvsock.HandshakeTimeoutError("/run/v.sock", 5003, "10"),
    fastvsock.GuestRefusedError("/run/v.sock", 5003),
    fastvsock.BadReplyError("/run/v.sock", 5003, "'SSH'"),
    fastvsock.CopyError(fastvsock.CopyResult(failed=[Failure("file", "left out")])),
    fastvsock.CopyMissingError(fastvsock.CopyResult(failed=[Failure("file", "cannot read", 2)])),
    fastvsock.CopyPermissionError(fastvsock.CopyResult(failed=[Failure("file", "cannot read", 13)])),
]


def test_every_error_is_among_the_examples() -> None:
    classes = {value for name, value in vars(errors).items() if isinstance(value, type) and not name.startswith("_")}
    assert {type(example) for example in EXAMPLES} == classes
    assert {cls.__name__ for cls in classes} == {name for name in fastvsock.__all__ if name.endswith("Error")}


@pytest.mark.parametrize("error", EXAMPLES, ids=lambda error: type(error).__name__)
def test_an_error_survives_pickling_and_copying(error: fastvsock.FastvsockError) -> None:
    others = [copy.copy(error), *(pickle.loads(pickle.dumps(error, n)) for n in range(pickle.HIGHEST_PROTOCOL + 1))]
    for other in others:
        assert type(other) is type(error)
        assert str(other) == str(error)
        assert repr(other.args) == repr(error.args)  # an exception among them equals nothing but itself
        assert vars(other) == vars(error)
        assert getattr(other, "errno", None) == getattr(error, "errno", None)


@pytest.mark.parametrize(
    ("error", "builtin", "code"),
    [
        (fastvsock.SocketMissingError, FileNotFoundError, 1),
        (fastvsock.SocketPermissionError, PermissionError, 1),
        (fastvsock.StaleSocketError, ConnectionRefusedError, 1),
        (fastvsock.GuestRefusedError, ConnectionRefusedError, 1),
        (fastvsock.HandshakeTimeoutError, TimeoutError, 1),
        (fastvsock.PathTooLongError, ValueError, 1),
        (fastvsock.PortError, ValueError, 2),
        (fastvsock.DurationError, ValueError, 1),
        (fastvsock.EmptyPathError, FileNotFoundError, 2),
        (fastvsock.EmulatorError, OSError, 1),
        (fastvsock.NotASocketError, OSError, 1),
        (fastvsock.BadReplyError, OSError, 1),
        (fastvsock.ConnectionBrokenError, ConnectionError, 1),
        (fastvsock.StreamError, OSError, 1),
        (fastvsock.IdleTimeoutError, TimeoutError, 1),
        (fastvsock.EngineError, Exception, 1),
        (fastvsock.UnknownEngineError, ValueError, 2),
        (fastvsock.UsageError, Exception, 2),
    ],
)
def test_an_error_is_the_built_in_one_that_a_caller_expects(
    error: type[fastvsock.FastvsockError], builtin: type[Exception], code: int
) -> None:
    assert issubclass(error, builtin)
    assert issubclass(error, fastvsock.FastvsockError)
    assert error.exit_code == code


@pytest.mark.parametrize("error", EXAMPLES, ids=lambda error: type(error).__name__)
def test_an_error_that_is_an_os_error_has_its_number(error: fastvsock.FastvsockError) -> None:
    if isinstance(error, ConnectionRefusedError | FileNotFoundError | PermissionError | TimeoutError):
        built_in = OSError(error.errno, "")  # which picks its class by the number
        assert isinstance(error, type(built_in))
    if isinstance(error, fastvsock.ConnectError):
        assert str(error.port) in str(error)
        assert error.uds in str(error)


@pytest.mark.parametrize("error", EXAMPLES, ids=lambda error: type(error).__name__)
def test_an_error_tells_a_caller_nothing_of_command_lines(error: fastvsock.FastvsockError) -> None:
    assert "--" not in str(error)
    assert bool(error.hint) == ("--" in error.hint)


@pytest.mark.parametrize(
    ("path", "shown"),
    [
        ("/run/v.sock", "/run/v.sock"),
        ("/run/\u00fc.sock", "/run/\u00fc.sock"),
        (os.fsdecode(b"/run/\xff\x80.sock"), r"/run/\xff\x80.sock"),
        ("two\nlines\x1b[31m", r"two\nlines\x1b[31m"),
        ("\ud800", r"\ud800"),
    ],
)
def test_a_path_is_shown_on_one_line_and_as_it_was_typed(path: str, shown: str) -> None:
    assert errors.printable(path) == shown
