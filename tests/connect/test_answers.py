"""What the VMM answers instead of OK, or does not answer in time."""

from pathlib import Path

import pytest

from support import Listener, connecting, run
from support.sentences import outcome, sentence
from support.sockets import listening, take

PORT = 5003


def test_no_answer_in_time_is_reported_with_the_time(listener: Listener) -> None:
    done = run("--timeout", "0.3", listener.uds, str(PORT))
    sentence(done, f"{listener.uds}: no answer for guest port {PORT} within 0.3 s", "--timeout")


def test_half_an_answer_in_time_is_no_answer(listener: Listener) -> None:
    with connecting(listener.uds, PORT, "--timeout", "1") as child, listener.accept(b"OK 10737"):
        sentence(outcome(child), f"{listener.uds}: no answer for guest port {PORT} within 1 s")


def test_a_close_without_ok_is_a_refusal(listener: Listener) -> None:
    with connecting(listener.uds, PORT) as child:
        listener.accept(b"").close()
        sentence(outcome(child), f"{listener.uds}: guest port {PORT} refused", "nothing is listening", "--wait")


def test_a_close_in_the_middle_of_ok_is_a_refusal(listener: Listener) -> None:
    with connecting(listener.uds, PORT) as child:
        listener.accept(b"OK 1073").close()
        sentence(outcome(child), f"{listener.uds}: guest port {PORT} refused", "--wait")


def test_a_reset_without_ok_is_a_refusal(tmp_path: Path) -> None:
    path = tmp_path / "v.sock"
    with listening(path) as sock, connecting(str(path), PORT) as child:
        take(sock).close()  # unix_release_sock(): to close with bytes unread resets
        sentence(outcome(child), f"{path}: guest port {PORT} refused", "nothing is listening", "--wait")


@pytest.mark.parametrize(
    "answer",
    [
        b"\n",
        b"OK\n",
        b"OK \n",
        b"ok 5\n",
        b"OK  5\n",
        b"OK 5 \n",
        b"OK -5\n",
        b"OK 5\r\n",
        b"OK 12345678901\n",
        b"OK 1073741824 ",
        b"HTTP/1.1 400 Bad Request\r\n\r\n",
        b"SSH-2.0-dropbear\r\n",
        b"\0\xff\x80\x1b[31m",
        b"garbage without an end" * 1000,
    ],
    ids=repr,
)
def test_an_answer_that_is_not_ok_is_shown(answer: bytes, listener: Listener) -> None:
    with connecting(listener.uds, PORT) as child:
        shown = repr(answer.decode("latin-1"))[1:4]
        with listener.accept(answer):  # and stays open: the sentence must not wait for the end
            done = outcome(child)
    sentence(done, f"{listener.uds}: the answer to CONNECT {PORT} was", shown, "not 'OK <n>'", "uds_path")
