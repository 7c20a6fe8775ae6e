"""A copy's process in the guest: the sender of a get, or the receiver of a put."""

import _socket
import os

from .. import errors
from ..channels import protocol
from ..channels.protocol import Request
from ..copying.options import Options
from ..copying.report import Report
from ..copying.wire import BrokenWire, Wire
from ..engines import choose
from ..engines.exchange import splices_well
from ..stdio import log
from .work import FAREWELL

TYPE_CHECKING = False
if TYPE_CHECKING:
    from .users import User


def serve(sock: _socket.socket, user: "User | None", request: Request, engine: str | None) -> None:
    """Become the user, do what the request says, and print what is worth a line of the agent's log."""
    native = choose(engine) == "splice"
    wire = Wire(sock, splices=native and splices_well(sock.family))
    try:
        _serve(wire, user, request, native)
    except (BrokenWire, TimeoutError):
        pass  # the client has gone, or stays without a word
    except errors.ProtocolError as error:
        log(f"a client sent {error.what}")
    except Exception as error:
        if os.environ.get("FASTVSOCK_DEBUG") == "1":
            raise
        log(f"unexpected {type(error).__name__} in a copy: {error}")


def _serve(wire: Wire, user: "User | None", request: Request, native: bool) -> None:
    try:
        if user:
            os.setgroups(user.groups)
            os.setgid(user.gid)
            os.setuid(user.uid)
    except OSError as error:
        wire.put(protocol.failed("user", error.errno or 0, request.user))
        wire.flush()
        wire.next(FAREWELL)
        return
    options = Options.parse(request.variables)
    if request.operation == protocol.GET:
        _send(wire, request, options, native)
    else:
        _receive(wire, request, options, native)


def _send(wire: Wire, request: Request, options: Options, native: bool) -> None:
    from ..copying.send import Sender  # each process needs one of the two ends

    wire.put(protocol.started())
    sender = Sender(wire, options, Report(), native=native)
    sender.run(request.arguments, request.arguments)
    wire.put(protocol.exited(0))
    sender.answers.wait_for_end()


def _receive(wire: Wire, request: Request, options: Options, native: bool) -> None:
    from ..copying.receive import Receiver
    from ..copying.target import Target, TargetFault
    from ..copying.tree import Rehearsal, Tree

    path, *names = request.arguments
    try:
        target = Target(path, [name or None for name in names])
    except TargetFault as fault:
        wire.put(protocol.failed("path", *fault.args))
    else:
        wire.put(protocol.started())
        wire.flush()
        tree = (Rehearsal if options.dry_run else Tree)(target, options, native=native)
        receiver = Receiver(wire, tree, options, Report(), names)
        receiver.run()
        wire.put(protocol.exited(1 if receiver.failures else 0))
    wire.flush()
    wire.next(FAREWELL)
