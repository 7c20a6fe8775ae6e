"""The umbrella command `fastvsock`. A subcommand's module is imported only when it runs.

Those that start once for every `kubectl exec`, and the agent, which stays in memory, do without umbrella.py too: they
parse their own options, print by themselves, and need nothing more than that to start.
"""

import os
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    import signal as _signal
else:
    import _signal  # signal itself imports enum

LEAN = ("agent", "connect", "exec")
COMMANDS = {
    "agent": "in a guest: do what fastvsock exec, cp and forward ask for",
    "bench": "measure splice against copy on this machine, or through a real VM",
    "connect": "join stdin and stdout to a port inside a microVM",
    "cp": "copy files and trees to a guest and from it",
    "doctor": "diagnose common problems on this machine and with a VMM, and suggest fixes",
    "emulate": "stand in for a VMM and its guest: a hybrid vsock without a VM, for demos and tests",
    "exec": "run a command in a guest, without ssh",
    "forward": "listen here and join each connection to a port inside a guest, by its agent",
    "listen": "accept the connections that a guest makes to a port of the host (CID 2)",
    "proxy": "listen on a port or a Unix socket and join each connection to a port inside a microVM",
    "runcvm": "install into a RunCVM bundle, uninstall, check it, or print a Kubernetes manifest",
}


def main() -> None:
    """The console script. Does not return."""
    name = "".join(sys.argv[1:2])
    if name not in LEAN:
        from . import umbrella

        umbrella.main()
    if _signal.getsignal(_signal.SIGINT) == _signal.default_int_handler:  # Ctrl-C has no traceback
        _signal.signal(_signal.SIGINT, _signal.SIG_DFL)
    os._exit(__import__(f"{__name__}.{name}", fromlist=("main",)).main(sys.argv[2:]))  # importlib is not loaded yet


def description(name: str) -> str:
    """The summary of a subcommand as a sentence, for its own ``--help``."""
    summary = COMMANDS[name]
    return f"{summary[0].upper()}{summary[1:]}."
