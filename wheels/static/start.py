"""What the binary runs once its interpreter is up: the program by whose name it was called."""

import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    import signal as _signal
    from importlib.machinery import BuiltinImporter, ModuleSpec
else:
    import _signal
    from _frozen_importlib import BuiltinImporter

CONNECT = "runcvm-vsock-connect"
# What is in an image, with all that these import: the commands of entry.c, with both engines and for a terminal.
IMAGE = (
    "fastvsock.runcvm_vsock_connect",
    "fastvsock.cli.connect",
    "fastvsock.cli.exec",
    "fastvsock.engines._copy",
    "fastvsock.engines._frames",
    "fastvsock.engines._framescopy",
    "fastvsock.engines._splice",
    "fastvsock.host.terminal",
)


class ExtensionFinder:
    """Finds the package's own modules in C: up to 3.11, `BuiltinImporter` looks for none inside a package."""

    @staticmethod
    def find_spec(name: str, path: object = None, target: object = None) -> "ModuleSpec | None":
        """The module's spec, or None where it is not linked."""
        return BuiltinImporter.find_spec(name) if path is not None else None


sys.meta_path.append(ExtensionFinder)


def prepare() -> None:
    """Import, while the image is made, what its commands need. Nothing here may look at its process."""
    import gc
    import os

    for name in IMAGE:
        __import__(name)
    sys.modules[IMAGE[0]].parse(("", "0"), "")  # a name that was looked up once is found without writing
    _signal.signal(_signal.SIGINT, _signal.SIG_DFL)  # as main() would have it
    sys.argv[:] = []
    os.environ._data.clear()  # type: ignore[attr-defined]
    gc.collect()
    gc.freeze()  # else the first collection would write to every object, and so to every page of the image


def resume(arguments: list[str], environment: dict[bytes, bytes]) -> None:
    """Go on from the image. Does not return."""
    import os

    sys.argv[:] = arguments
    os.environ._data.update(environment)  # type: ignore[attr-defined]
    main()


def main() -> None:
    """Become `runcvm-vsock-connect` or `fastvsock`. Does not return."""
    import gc

    if "".join(sys.argv[:1]).rpartition("/")[2] == CONNECT:
        if _signal.getsignal(_signal.SIGINT) == _signal.default_int_handler:  # else it is ignored, and stays so
            _signal.signal(_signal.SIGINT, _signal.SIG_DFL)
        from fastvsock.runcvm_vsock_connect import main
    else:
        from fastvsock.cli import main
    gc.enable()
    main()
