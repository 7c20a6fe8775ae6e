"""A Kubernetes API server with one pod, as much of one as `kubectl exec` and `kubectl cp` use, on a port of 127.0.0.1.

    python -m support.apiserver [--cut BYTES] [WORD ...]

It prints its URL. A command for the pod is run as a CRI runs RunCVM's exec: the WORDs, `{tty}` among them replaced by
true or false, and then the command's own words. With no WORD the command is run as it is.

An exec is a WebSocket of the subprotocol v5.channel.k8s.io (k8s.io/kubernetes/staging/src/k8s.io/apimachinery/pkg/util/
remotecommand/constants.go): the first byte of a message is the number of its channel; on channel 255 the second byte
is the channel that ends. When the connection is lost, the command gets the end of stdin and a closed stdout. It is not
killed; containerd does not kill it either.
"""

import argparse
import contextlib
import fcntl
import io
import json
import os
import pty
import struct
import subprocess
import termios
import threading
from collections.abc import Iterator
from functools import partial
from http import HTTPStatus
from typing import IO, Any
from urllib.parse import parse_qs, urlsplit

from websockets.datastructures import Headers
from websockets.exceptions import ConnectionClosed
from websockets.http11 import Request, Response
from websockets.sync.server import ServerConnection, serve
from websockets.typing import Subprotocol

STDIN, STDOUT, STDERR, STATUS, RESIZE, CLOSE = 0, 1, 2, 3, 4, 255  # channels
PROTOCOL = Subprotocol("v5.channel.k8s.io")
PIECE = 1 << 15  # bytes of output in a message, as kubelet's
CWD = "/"  # where RunCVM's runtime has its exec script start; the command's own folder is among the WORDs
NAME = "pod"
POD = f"/api/v1/namespaces/default/pods/{NAME}"
DOCUMENTS: dict[str, dict[str, Any]] = {
    "/api": {"kind": "APIVersions", "versions": ["v1"]},
    "/apis": {"kind": "APIGroupList", "apiVersion": "v1", "groups": []},
    "/api/v1": {
        "kind": "APIResourceList",
        "groupVersion": "v1",
        "resources": [
            {"name": "pods", "singularName": "pod", "kind": "Pod", "namespaced": True, "verbs": ["get"]},
            {"name": "pods/exec", "kind": "PodExecOptions", "namespaced": True, "verbs": ["create", "get"]},
        ],
    },
    POD: {
        "kind": "Pod",
        "apiVersion": "v1",
        "metadata": {"name": NAME, "namespace": "default"},
        "spec": {"containers": [{"name": "main", "image": "main"}]},
        "status": {"phase": "Running"},
    },
}


class Cut:
    """A fault: the connection that first carries more than `size` bytes of stdout ends there, without a status."""

    def __init__(self, size: int | None) -> None:
        self._size = size
        self._lock = threading.Lock()

    def reached(self, size: int) -> bool:
        """Whether a connection that has carried `size` bytes ends now; true once."""
        with self._lock:
            if self._size is None or size <= self._size:
                return False
            self._size = None
            return True


class Process:
    """A command in the pod, with pipes or with a terminal: its streams, unbuffered."""

    def __init__(self, words: list[str], *, tty: bool, stdin: bool) -> None:
        if tty:
            self._with_terminal(words)
        else:
            self._with_pipes(words, stdin)

    def _with_terminal(self, words: list[str]) -> None:
        master, slave = pty.openpty()
        self.popen = subprocess.Popen(
            words,
            cwd=CWD,
            stdin=slave,
            stdout=slave,
            stderr=slave,
            start_new_session=True,
            preexec_fn=take_terminal,
        )
        os.close(slave)
        self.outputs: dict[int, IO[bytes]] = {STDOUT: io.FileIO(master, "r")}
        self.stdin: IO[bytes] | None = io.FileIO(os.dup(master), "w")

    def _with_pipes(self, words: list[str], stdin: bool) -> None:
        pipe = subprocess.PIPE
        inlet = pipe if stdin else subprocess.DEVNULL
        self.popen = subprocess.Popen(words, cwd=CWD, stdin=inlet, stdout=pipe, stderr=pipe, bufsize=0)
        assert self.popen.stdout
        assert self.popen.stderr
        self.outputs = {STDOUT: self.popen.stdout, STDERR: self.popen.stderr}
        self.stdin = self.popen.stdin

    def end_input(self) -> None:
        """Close stdin; a terminal's end is left to the terminal."""
        if self.stdin is not None:
            self.stdin.close()
            self.stdin = None


def take_terminal() -> None:
    """Make stdin the controlling terminal, in the child."""
    fcntl.ioctl(0, termios.TIOCSCTTY, 0)


def execute(connection: ServerConnection, words: list[str], cut: Cut) -> None:
    """Run the command that a connection asks for, to its end."""
    assert connection.request
    text = urlsplit(connection.request.path).query
    query = parse_qs(text, keep_blank_values=True, encoding="utf-8", errors="surrogateescape")
    tty = query.get("tty") == ["true"]
    before = [word.replace("{tty}", str(tty).lower()) for word in words]
    try:
        process = Process(before + query["command"], tty=tty, stdin=query.get("stdin") == ["true"])
    except OSError as error:
        finish(connection, failure("InternalError", str(error)))
        return
    outputs = [
        threading.Thread(target=carry_output, args=(connection, channel, stream, cut))
        for channel, stream in process.outputs.items()
    ]
    threading.Thread(target=carry_input, args=(connection, process), daemon=True).start()
    for thread in outputs:
        thread.start()
    for thread in outputs:
        thread.join()
    code = process.popen.wait()
    finish(connection, status_of(128 - code if code < 0 else code))


def carry_output(connection: ServerConnection, channel: int, stream: IO[bytes], cut: Cut) -> None:
    """Send what comes from a stream, until it ends or the connection does; then close it."""
    head, sent = bytes([channel]), 0
    with stream, contextlib.suppress(ConnectionClosed):
        for piece in pieces(stream):
            sent += len(piece)
            if channel == STDOUT and cut.reached(sent):
                connection.close()
            connection.send(head + piece)


def pieces(stream: IO[bytes]) -> Iterator[bytes]:
    """What can be read; the end of a terminal is an EIO."""
    with contextlib.suppress(OSError):
        while piece := stream.read(PIECE):
            yield piece


def carry_input(connection: ServerConnection, process: Process) -> None:
    """Write stdin as it comes, resize the terminal when a message asks for it, and close stdin at its end."""
    for channel, payload in messages(connection):
        if channel == STDIN:
            write_input(process, payload)
        elif channel == RESIZE and process.stdin is not None:
            size = json.loads(payload)
            fcntl.ioctl(process.stdin, termios.TIOCSWINSZ, struct.pack("HHHH", size["Height"], size["Width"], 0, 0))
        elif channel == CLOSE and payload[0] == STDIN:
            process.end_input()
    process.end_input()


def messages(connection: ServerConnection) -> Iterator[tuple[int, bytes]]:
    """The channel and the payload of each message, until the connection ends or is lost."""
    with contextlib.suppress(ConnectionClosed):
        for message in connection:
            assert isinstance(message, bytes)
            yield message[0], message[1:]


def write_input(process: Process, payload: bytes) -> None:
    """Write all of `payload`; drop it if the command no longer reads."""
    while payload and process.stdin is not None:
        try:
            payload = payload[process.stdin.write(payload) :]
        except OSError:
            process.end_input()


def status_of(code: int) -> dict[str, Any]:
    """The metav1.Status of an exit status."""
    if code == 0:
        return {"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success"}
    return failure(
        "NonZeroExitCode",
        f"command terminated with non-zero exit code: exit status {code}",
        causes=[{"reason": "ExitCode", "message": str(code)}],
    )


def failure(reason: str, message: str, **details: Any) -> dict[str, Any]:
    """A metav1.Status of a failure."""
    return {
        "kind": "Status",
        "apiVersion": "v1",
        "metadata": {},
        "status": "Failure",
        "reason": reason,
        "message": message,
        "details": details,
    }


def finish(connection: ServerConnection, status: dict[str, Any]) -> None:
    """Send the status and end the connection, unless it is lost already."""
    with contextlib.suppress(ConnectionClosed):
        connection.send(bytes([STATUS]) + json.dumps(status).encode())
    connection.close()


def answer(connection: ServerConnection, request: Request) -> Response | None:
    """Answer a plain GET; leave an exec to the WebSocket."""
    path = urlsplit(request.path).path
    if path == f"{POD}/exec":
        return None
    document = DOCUMENTS.get(path)
    status = HTTPStatus.OK if document else HTTPStatus.NOT_FOUND
    body = json.dumps(document or failure("NotFound", f"{path} not found") | {"code": status.value}).encode()
    headers = Headers({"Content-Type": "application/json", "Content-Length": str(len(body)), "Connection": "close"})
    return Response(status.value, status.phrase, headers, body)


def main() -> None:
    """Serve until killed."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--cut", type=int, metavar="BYTES", help="end the first exec that has carried so much, once")
    parser.add_argument("words", nargs="*", metavar="WORD")
    options = parser.parse_args()
    with serve(
        partial(execute, words=options.words, cut=Cut(options.cut)),
        "127.0.0.1",
        0,
        process_request=answer,
        subprotocols=[PROTOCOL],
        compression=None,
        ping_interval=None,
    ) as server:
        host, port = server.socket.getsockname()
        print(f"http://{host}:{port}", flush=True)
        server.serve_forever()


if __name__ == "__main__":
    main()
