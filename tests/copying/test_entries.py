"""The messages of a copy: what is encoded comes back, and what nobody encoded is refused with one class of error."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastvsock import errors
from fastvsock.copying import entries
from fastvsock.copying.entries import Entry

NAMES = st.binary(min_size=1, max_size=255).filter(entries.is_name)
PAIRS = st.tuples(st.binary(min_size=1, max_size=255).filter(lambda name: b"\0" not in name), st.binary(max_size=99))


@given(
    NAMES,
    st.integers(0, 0o7777),
    st.integers(0, (1 << 32) - 1),
    st.integers(-(1 << 63), (1 << 63) - 1),
    st.integers(0, entries.MAX_SIZE),
    st.lists(PAIRS, max_size=3),
    st.binary(max_size=99),
)
def test_an_entry_comes_back(
    name: bytes, mode: int, uid: int, mtime: int, size: int, xattrs: list[tuple[bytes, bytes]], rest: bytes
) -> None:
    frame = Entry(name, mode, uid, uid, mtime, size, xattrs=tuple(xattrs), rest=rest).encode(entries.FILE)
    assert entries.parse_header(frame) == (entries.FILE, len(frame) - 8)
    found = Entry.parse(frame[8:])
    assert (found.name, found.mode, found.uid, found.gid) == (name, mode, uid, uid)
    assert (found.mtime, found.size, found.xattrs, found.rest) == (mtime, size, tuple(xattrs), rest)


@given(st.binary(max_size=200))
def test_any_bytes_are_an_entry_or_a_protocol_error(data: bytes) -> None:
    try:
        found = Entry.parse(data)
    except errors.ProtocolError:
        return
    assert entries.is_name(found.name)
    assert 0 <= found.size <= entries.MAX_SIZE


@given(NAMES, st.data())
def test_a_byte_that_is_changed_does_no_harm(name: bytes, data: st.DataObject) -> None:
    frame = bytearray(Entry(name, 0o644, xattrs=((b"user.a", b"b"),)).encode(entries.FILE))
    frame[data.draw(st.integers(8, len(frame) - 1))] = data.draw(st.integers(0, 255))
    try:
        assert entries.is_name(Entry.parse(bytes(frame[8:])).name)
    except errors.ProtocolError:
        pass


@pytest.mark.parametrize("parse", [entries.parse_pair, entries.parse_fault, entries.parse_answer])
def test_short_and_long_answers_are_refused(parse: object) -> None:
    assert callable(parse)
    with pytest.raises(errors.ProtocolError):
        parse(b"\xfe")


def test_a_fault_in_words_has_the_systems_reason() -> None:
    assert entries.describe(entries.WRITE, 28) == "cannot write: No space left on device"
    assert entries.describe(entries.LEFT_OUT, 0) == "left out"
