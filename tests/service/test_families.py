"""Which processes count as the command's, in a tree of processes that the test makes up."""

import os
import socket
from collections.abc import Callable
from typing import Any, cast

import pytest

from fastvsock.host.sock_diag import FIN_WAIT1, FIN_WAIT2, TIME_WAIT, Found
from fastvsock.services import ownership
from fastvsock.services.connection import Connection
from fastvsock.services.ownership import CLOSED, STRANGER, Family

US, OTHER, THIRD = os.getuid(), os.getuid() + 1, os.getuid() + 2
ESTABLISHED = 1


class Tree:
    """The processes below this one: children by pid (None where /proc hides them), users, and open sockets."""

    def __init__(self) -> None:
        self.children: dict[int, list[int] | None] = {}
        self.users: dict[int, set[int]] = {}
        self.sockets: dict[int, int | None] = {}
        self.pauses: list[float] = []

    def has_open(self, pid: int, inode: int) -> bool | None:
        held = self.sockets.get(pid, 0)
        return None if held is None else held == inode


@pytest.fixture
def tree(monkeypatch: pytest.MonkeyPatch) -> Tree:
    tree = Tree()
    monkeypatch.setattr(ownership, "children_of", lambda pid: tree.children.get(pid, []))
    monkeypatch.setattr(ownership, "users_of", lambda pid: tree.users.get(pid, {US}))
    monkeypatch.setattr(ownership, "has_open", tree.has_open)
    monkeypatch.setattr(ownership, "exists", lambda pid: pid in tree.users)
    monkeypatch.setattr(ownership, "is_own_proc", lambda: True)
    monkeypatch.setattr(ownership, "sleep", tree.pauses.append)
    return tree


@pytest.fixture
def family(tree: Tree) -> Family:
    """Made while a helper, 50, is there already; then the command, 100, with a child, 101, and its child, 102."""
    tree.children[os.getpid()] = [50]
    family = Family()
    tree.children |= {os.getpid(): [50, 100], 100: [101], 101: [102]}
    return family


class Tcp:
    """A TCP connection of which only the family counts."""

    family = socket.AF_INET


class Unix:
    """A connection over a Unix socket."""

    family = socket.AF_UNIX


def connection(kind: type) -> Connection:
    return Connection(cast(Any, kind()), "a connection")


Answers = Callable[..., list[Found | None]]


@pytest.fixture
def kernel(monkeypatch: pytest.MonkeyPatch) -> Answers:
    """Sets what the kernel answers about the other end, question by question; the last answer stays."""

    def answer(*found: Found | None) -> list[Found | None]:
        left = list(found)
        monkeypatch.setattr(ownership, "other_end", lambda sock: left.pop(0) if len(left) > 1 else left[0])
        return left

    return answer


@pytest.mark.parametrize("holder", [100, 101, 102])
def test_a_socket_of_any_descendant_is_served(holder: int, tree: Tree, family: Family, kernel: Answers) -> None:
    kernel((ESTABLISHED, US, 7))
    tree.sockets[holder] = 7
    assert family.reject_reason(connection(Tcp)) == ""
    assert tree.pauses == []


def test_a_socket_of_a_child_from_before_is_a_strangers_after_three_looks(
    tree: Tree, family: Family, kernel: Answers
) -> None:
    kernel((ESTABLISHED, US, 7))
    tree.sockets[50] = 7
    assert family.reject_reason(connection(Tcp)) == STRANGER
    assert tree.pauses == [0.01, 0.01]


def test_a_socket_that_gets_its_holder_between_two_looks_is_served(
    tree: Tree, family: Family, kernel: Answers, monkeypatch: pytest.MonkeyPatch
) -> None:
    kernel((ESTABLISHED, US, 7))
    monkeypatch.setattr(ownership, "sleep", lambda pause: tree.sockets.update({101: 7}))
    assert family.reject_reason(connection(Tcp)) == ""


def test_a_descendant_whose_sockets_are_hidden_leaves_the_question_to_its_user(
    tree: Tree, family: Family, kernel: Answers
) -> None:
    tree.sockets[101] = None
    tree.users[101] = {OTHER}
    kernel((ESTABLISHED, OTHER, 7))
    assert family.reject_reason(connection(Tcp)) == ""
    kernel((ESTABLISHED, THIRD, 7))
    assert family.reject_reason(connection(Tcp)) == STRANGER


def test_a_descendant_whose_children_are_hidden_leaves_the_question_to_its_user(
    tree: Tree, family: Family, kernel: Answers
) -> None:
    tree.children[100] = None
    tree.users[100] = {OTHER}
    kernel((ESTABLISHED, OTHER, 7))
    assert family.reject_reason(connection(Tcp)) == ""
    kernel((ESTABLISHED, THIRD, 7))
    assert family.reject_reason(connection(Tcp)) == STRANGER


def test_a_hidden_descendant_does_not_hide_the_others(tree: Tree, family: Family, kernel: Answers) -> None:
    tree.children |= {os.getpid(): [50, 100, 103], 103: None}
    tree.sockets[101] = 7
    kernel((ESTABLISHED, THIRD, 7))
    assert family.reject_reason(connection(Tcp)) == ""


def test_where_proc_is_another_namespaces_root_and_our_user_are_served(
    tree: Tree, family: Family, kernel: Answers, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "getuid", lambda: OTHER)
    monkeypatch.setattr(ownership, "is_own_proc", lambda: False)
    for uid, reason in ((0, ""), (OTHER, ""), (THIRD, STRANGER)):
        kernel((ESTABLISHED, uid, 7))
        assert family.reject_reason(connection(Tcp)) == reason


def test_at_accept_root_is_a_user_like_any_other(
    tree: Tree, family: Family, kernel: Answers, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "getuid", lambda: OTHER)
    tree.users[102] = {0}
    kernel((ESTABLISHED, 0, 7))
    assert family.on_accept(connection(Tcp)) == ""


def test_a_client_that_has_closed_may_have_been_a_hidden_descendant(
    tree: Tree, family: Family, kernel: Answers, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ownership, "queues", lambda fd: (0, 0))
    tree.children[100] = None
    tree.users[100] = {OTHER}
    kernel((FIN_WAIT1, OTHER, 0))
    assert family.reject_reason(connection(Tcp)) == ""


@pytest.mark.parametrize(
    ("pid", "uid", "is_served"),
    [(102, OTHER, True), (0, US, False), (50, US, False), (999, US, True), (999, OTHER, False)],
    ids=["a descendant", "outside of the namespace", "a child from before", "ours and gone", "another's and gone"],
)
def test_the_process_that_connected_to_a_unix_socket_decides(
    pid: int, uid: int, is_served: bool, tree: Tree, family: Family, monkeypatch: pytest.MonkeyPatch
) -> None:
    tree.users |= {member: {US} for member in (50, 100, 101, 102)}
    monkeypatch.setattr(ownership, "peer_credentials", lambda sock: (pid, uid, uid))
    assert family.reject_reason(connection(Unix)) == ("" if is_served else STRANGER)
    assert tree.pauses == ([0] if is_served else [0, 0.01, 0.01])


@pytest.mark.parametrize(
    ("pid", "uid", "perhaps"),
    [(102, THIRD, True), (0, US, False), (50, US, True), (999, OTHER, True), (999, THIRD, False)],
    ids=["a descendant", "outside of the namespace", "our user", "a descendant's user", "nobody's user"],
)
def test_at_accept_a_unix_socket_is_rejected_where_no_descendant_has_its_user(
    pid: int, uid: int, perhaps: bool, tree: Tree, family: Family, monkeypatch: pytest.MonkeyPatch
) -> None:
    tree.users[102] = {OTHER}
    monkeypatch.setattr(ownership, "peer_credentials", lambda sock: (pid, uid, uid))
    assert family.on_accept(connection(Unix)) == ("" if perhaps else STRANGER)


def test_at_accept_a_tcp_socket_is_rejected_where_no_descendant_has_its_user(
    tree: Tree, family: Family, kernel: Answers
) -> None:
    kernel((ESTABLISHED, THIRD, 7))
    assert family.on_accept(connection(Tcp)) == STRANGER
    tree.users[102] = {THIRD}
    accepted = connection(Tcp)
    assert family.on_accept(accepted) == ""
    assert accepted.owner == (ESTABLISHED, THIRD, 7)


@pytest.mark.parametrize(
    ("found", "reason"),
    [((FIN_WAIT1, US, 0), ""), ((FIN_WAIT1, THIRD, 0), STRANGER), ((TIME_WAIT, 0, 0), CLOSED)],
    ids=["our user", "another user", "a remnant"],
)
def test_of_a_client_that_has_closed_the_user_decides(
    found: Found, reason: str, family: Family, kernel: Answers, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "uname", lambda: os.uname_result(("Linux", "host", "6.17.0", "", "x86_64")))
    monkeypatch.setattr(ownership, "queues", lambda fd: (0, 0))
    monkeypatch.setattr(Tcp, "fileno", lambda self: -1, raising=False)
    kernel(found)
    closed = connection(Tcp)
    assert family.reject_reason(closed) == reason
    assert closed.unidentified == (reason == CLOSED)


@pytest.mark.parametrize(
    ("found", "release", "is_its_own"),
    [
        ((FIN_WAIT1, 0, 0), "6.17.0", True),
        ((FIN_WAIT1, 0, 0), "7.0.0-rc1", True),
        ((FIN_WAIT1, 0, 0), "6.16.9", False),
        ((FIN_WAIT1, 0, 0), "weird", False),
        ((FIN_WAIT2, 0, 0), "6.17.0", False),
        ((TIME_WAIT, 0, 0), "6.17.0", False),
        ((FIN_WAIT2, 5, 0), "6.16.0", True),
        ((FIN_WAIT2, 0, 5), "6.16.0", True),
    ],
)
def test_user_0_without_an_inode_counts_where_the_kernel_keeps_the_user(
    found: Found, release: str, is_its_own: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "uname", lambda: os.uname_result(("Linux", "host", release, "", "x86_64")))
    assert ownership._has_own_user(found) == is_its_own


@pytest.mark.parametrize(
    ("peer", "own", "is_local"),
    [
        ("127.0.0.1", "10.0.0.1", True),
        ("::ffff:127.9.9.9", "::", True),
        ("::1", "::1", True),
        ("::1", "fe80::1", True),
        ("10.0.0.1", "10.0.0.1", True),
        ("::ffff:10.0.0.1", "10.0.0.1", True),
        ("10.0.0.1", "::ffff:10.0.0.1", True),
        ("10.0.0.2", "10.0.0.1", False),
    ],
)
def test_an_address_is_local_where_it_is_loopback_or_our_own(peer: str, own: str, is_local: bool) -> None:
    class Ends:
        def getpeername(self) -> tuple[str, int]:
            return peer, 1

        def getsockname(self) -> tuple[str, int]:
            return own, 2

    assert ownership._is_local(cast(socket.socket, Ends())) == is_local
