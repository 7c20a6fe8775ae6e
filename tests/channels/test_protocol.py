"""The messages of a channel: what each looks like on the wire, its limits, and in which order they may come."""

import errno

import pytest

from fastvsock import errors
from fastvsock.channels import protocol
from fastvsock.channels.protocol import Client, Request, Server
from fastvsock.engines.frames import HEADER


def payload(frame: bytes) -> bytes:
    return frame[HEADER:]


def field(name: int, value: bytes) -> bytes:
    return bytes((name,)) + len(value).to_bytes(4, "big") + value


def parse(*fields: bytes, operation: int = protocol.INFO) -> Request:
    return protocol.parse_request(bytes((0, 1, operation)) + b"".join(fields))


def test_a_request_is_its_version_its_operation_and_its_fields() -> None:
    request = Request(
        protocol.EXEC,
        arguments=[b"ls", b"-l"],
        variables=[b"A=1"],
        directory=b"/tmp",
        user=b"me",
        groups=[b"wheel", b"7"],
        flags=5,
        size=(30, 256),
        address=b"unix:/x",
    )
    assert request.encode() == b"\x10\0\0\0\0\0\0\x54" + b"\0\x01\x01" + b"".join(
        (
            *(field(1, b"ls"), field(1, b"-l"), field(2, b"A=1"), field(5, b"wheel"), field(5, b"7")),
            *(field(3, b"/tmp"), field(4, b"me"), field(8, b"unix:/x"), field(6, b"\5"), field(7, b"\0\x1e\1\0")),
        )
    )


def test_a_request_is_read_as_it_was_written() -> None:
    found = parse(field(6, b"\5"), field(7, b"\0\x1e\1\0"), field(4, b"me"), field(8, b"unix:/x"))
    assert found == Request(protocol.INFO, flags=5, size=(30, 256), user=b"me", address=b"unix:/x")


def test_what_is_not_asked_for_is_not_in_a_request() -> None:
    assert payload(Request(protocol.INFO).encode()) == b"\0\1\3"


@pytest.mark.parametrize("groups", [None, [], [b"one"], [b"one", b"two"]])
def test_no_groups_are_not_the_users_own(groups: list[bytes] | None) -> None:
    request = Request(protocol.EXEC, arguments=[b"id"], groups=groups)
    assert protocol.parse_request(payload(request.encode())).groups == groups


def test_the_numbers_of_the_protocol() -> None:
    """What an agent of another release has too."""
    assert (protocol.VERSION, protocol.PORT) == (1, 721)
    messages = ("REQUEST", "STARTED", "FAILED", "SIGNAL", "RESIZE", "EXIT", "DONE", "SIGNALLED")
    assert [getattr(protocol, name) for name in messages] == list(range(16, 24))
    operations = ("EXEC", "DIAL", "INFO", "PUT", "GET")
    assert [getattr(protocol, name) for name in operations] == [1, 2, 3, 4, 5]
    assert (protocol.STDIN, protocol.STDOUT, protocol.STDERR, protocol.UP, protocol.DOWN) == (0, 1, 2, 0, 1)
    assert (protocol.WITH_STDIN, protocol.TERMINAL, protocol.CLEAR_ENVIRONMENT) == (1, 2, 4)
    assert protocol.PROPERTY == 9


@pytest.mark.parametrize("name", ["arguments", "variables"])
def test_a_word_is_as_long_as_the_kernel_takes_it(name: str) -> None:
    request = Request(protocol.EXEC, arguments=[b"true"])
    setattr(request, name, [b"x" * ((1 << 17) - 1)])
    assert protocol.parse_request(payload(request.encode())) == request
    setattr(request, name, [b"x" * (1 << 17)])
    with pytest.raises(
        errors.UsageError, match="argument or variable of 131072 bytes: the kernel takes at most 131071"
    ):
        request.encode()


def test_a_request_is_as_long_as_its_limit() -> None:
    words = [b"x" * 100_000] * 41
    rest = (1 << 22) - 3 - sum(5 + len(word) for word in words) - 5
    request = Request(protocol.EXEC, arguments=[*words, b"y" * rest])
    whole = request.encode()
    assert len(payload(whole)) == 1 << 22 == protocol.request_length(whole[:HEADER])
    request.arguments[-1] += b"y"
    with pytest.raises(errors.UsageError, match="arguments and environment of 4194305 bytes: at most 4194304"):
        request.encode()


@pytest.mark.parametrize("part", ["arguments", "variables", "directory", "user", "groups", "address"])
def test_a_nul_byte_is_refused_at_both_ends(part: str) -> None:
    request = Request(protocol.EXEC, arguments=[b"true"])
    setattr(request, part, b"a\0b" if part in ("directory", "user", "address") else [b"a\0b"])
    with pytest.raises(errors.UsageError, match="holds a NUL byte"):
        request.encode()
    number = {"arguments": 1, "variables": 2, "directory": 3, "user": 4, "groups": 5, "address": 8}[part]
    with pytest.raises(ValueError, match="a NUL byte"):
        parse(field(number, b"a\0b"))


@pytest.mark.parametrize(
    ("head", "reason"),
    [
        (b"\x11\0\0\0\0\0\0\x03", "the first frame is not a request"),
        (b"\x10\x01\0\0\0\0\0\x03", "the first frame is not a request"),
        (b"\x10\0\0\x01\0\0\0\x03", "the first frame is not a request"),
        (b"\x10\0\0\0\0\0\0\x02", "a request of 2 bytes"),
        (b"\x10\0\0\0\0\x40\0\x01", "a request of 4194305 bytes"),
    ],
)
def test_a_first_frame_that_is_not_a_request(head: bytes, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        protocol.request_length(head)


def test_the_shortest_request() -> None:
    assert protocol.request_length(b"\x10\0\0\0\0\0\0\x03") == 3


@pytest.mark.parametrize("bad", [b"\1", b"\1\0\0\0", b"\1\0\0\0\2x", b"\1\0\0\0\1"])
def test_a_field_that_is_cut_off_is_refused(bad: bytes) -> None:
    with pytest.raises(ValueError, match="a field is longer than its frame"):
        parse(bad)


def test_unknown_fields_and_flags_of_another_length_are_ignored() -> None:
    found = parse(field(77, b"future"), field(6, b"\1\1"), field(3, b"/"))
    assert found == Request(protocol.INFO, directory=b"/")


@pytest.mark.parametrize("size", [b"", b"\0\1\0", b"\0\1\0\1\0"])
def test_a_windows_size_is_four_bytes(size: bytes) -> None:
    with pytest.raises(ValueError, match="a window's size of another length than 4 bytes"):
        parse(field(7, size))


def test_a_command_has_a_name() -> None:
    with pytest.raises(ValueError, match="no command"):
        parse(operation=protocol.EXEC)
    assert parse(field(1, b""), operation=protocol.EXEC).arguments == [b""]


@pytest.mark.parametrize("version", [0, 2, 99, 257])
def test_another_version_is_known_before_anything_else(version: int) -> None:
    with pytest.raises(protocol.VersionError):
        protocol.parse_request(version.to_bytes(2, "big") + b"\1\xff")


def test_a_request_can_be_read_and_compared() -> None:
    request = Request(protocol.DIAL, address=b"tcp:x:1")
    assert "address=b'tcp:x:1'" in repr(request)
    assert request == Request(protocol.DIAL, address=b"tcp:x:1") != Request(protocol.DIAL)
    assert request != request.encode()


@pytest.mark.parametrize(("status", "wire"), [(0, b"\0\0"), (255, b"\xff\0"), (-15, b"\0\x0f")])
def test_an_exit_is_a_status_or_a_signal(status: int, wire: bytes) -> None:
    client = Client()
    client.receive(protocol.STARTED, b"")
    assert client.status is None
    assert payload(protocol.exited(status)) == wire
    client.receive(protocol.EXIT, wire)
    assert client.status == status


def test_a_start_has_properties() -> None:
    client = Client()
    client.receive(protocol.STARTED, payload(protocol.started([b"a=1=2", b"b", b"c=\xff"])) + field(1, b"else=1"))
    assert client.has_started
    assert client.properties == {"a": "1=2", "b": "", "c": "\ufffd"}


@pytest.mark.parametrize(
    "messages",
    [
        [(protocol.EXIT, b"\0\0")],
        [(protocol.STARTED, b""), (protocol.STARTED, b"")],
        [(protocol.STARTED, b""), (protocol.FAILED, payload(protocol.failed("command")))],
        [(protocol.STARTED, b""), (protocol.EXIT, b"\0\0"), (protocol.EXIT, b"\0\0")],
        [(protocol.STARTED, b""), (protocol.EXIT, b"\0")],
        [(protocol.STARTED, b""), (protocol.SIGNALLED, b"")],
        [(protocol.STARTED, b""), (protocol.DONE, b"")],
    ],
)
def test_a_client_refuses_what_is_out_of_order(messages: list[tuple[int, bytes]]) -> None:
    client = Client()
    *before, (kind, last) = messages
    for message in before:
        client.receive(*message)
    with pytest.raises(errors.ProtocolError, match=f"an unexpected message of type {kind} and {len(last)} bytes"):
        client.receive(kind, last)


def test_a_signal_is_confirmed_once() -> None:
    client = Client()
    client.signals += [1.0, 2.0]
    with pytest.raises(errors.ProtocolError):
        client.receive(protocol.SIGNALLED, b"x")
    client.receive(protocol.SIGNALLED, payload(protocol.signalled()))
    assert client.signals == [2.0]


@pytest.mark.parametrize("kind", protocol.KINDS)
def test_a_failure_has_a_kind_an_errno_and_a_subject(kind: str) -> None:
    with pytest.raises(errors.StartError) as caught:
        Client().receive(protocol.FAILED, payload(protocol.failed(kind, errno.EACCES, b"name\xff")))
    expected = errors.start_error(kind, errno.EACCES, "name\udcff")
    assert (type(caught.value), caught.value.args) == (type(expected), expected.args)


@pytest.mark.parametrize(
    ("number", "kept"), [(errno.ENOENT, errno.ENOENT), (0, 0), (99999, 0), (1 << 24 | errno.ENOENT, 0)]
)
def test_an_errno_that_does_not_exist_is_none(number: int, kept: int) -> None:
    with pytest.raises(errors.StartError) as caught:
        Client().receive(protocol.FAILED, payload(protocol.failed("command", number, b"x")))
    assert (caught.value.errno or 0) == kept


def test_the_subject_of_a_failure_is_cut_at_its_limit() -> None:
    frame = protocol.failed("path", 0, b"x" * 5000)
    assert len(payload(frame)) == 5 + 4096
    with pytest.raises(errors.StartError):
        Client().receive(protocol.FAILED, payload(frame))
    with pytest.raises(errors.ProtocolError, match="a failure of an unknown kind or length"):
        Client().receive(protocol.FAILED, payload(frame) + b"x")


def test_a_failure_may_be_about_nothing() -> None:
    assert payload(protocol.failed("process", 12)) == b"\7\0\0\0\x0c"
    with pytest.raises(errors.StartError):
        Client().receive(protocol.FAILED, payload(protocol.failed("process", 12)))


@pytest.mark.parametrize("bad", [b"", b"\0\0\0\0", bytes((len(protocol.KINDS), 0, 0, 0, 0))])
def test_a_failure_that_makes_no_sense(bad: bytes) -> None:
    with pytest.raises(errors.ProtocolError, match="a failure of an unknown kind or length"):
        Client().receive(protocol.FAILED, bad)


def test_a_server_takes_signals_and_sizes_at_any_time_and_an_end_after_its_own() -> None:
    server = Server()
    assert server.receive(protocol.SIGNAL, payload(protocol.signal(1))) == (protocol.SIGNAL, (1, 0))
    assert server.receive(protocol.SIGNAL, payload(protocol.signal(64))) == (protocol.SIGNAL, (64, 0))
    assert server.receive(protocol.RESIZE, payload(protocol.resize(24, 300))) == (protocol.RESIZE, (24, 300))
    with pytest.raises(ValueError, match="an unexpected message of type 22 and 0 bytes"):
        server.receive(protocol.DONE, b"")
    server.has_exited = True
    assert not server.is_done
    assert server.receive(protocol.DONE, payload(protocol.done())) == (protocol.DONE, (0, 0))
    assert server.is_done
    with pytest.raises(ValueError, match="unexpected"):
        server.receive(protocol.DONE, b"")


@pytest.mark.parametrize(
    ("kind", "bad"),
    [
        (protocol.SIGNAL, b"\0"),
        (protocol.SIGNAL, b"\x41"),
        (protocol.SIGNAL, b""),
        (protocol.SIGNAL, b"\1\1"),
        (protocol.RESIZE, b"\0\0\0"),
        (protocol.DONE, b"\0"),
        (protocol.STARTED, b""),
        (40, b""),
    ],
)
def test_a_server_refuses_what_no_client_sends(kind: int, bad: bytes) -> None:
    server = Server()
    server.has_exited = True
    with pytest.raises(ValueError, match=r"unexpected message|window's size"):
        server.receive(kind, bad)
