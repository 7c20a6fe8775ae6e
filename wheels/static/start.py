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


class ExtensionFinder:
    """Finds the package's own modules in C: up to 3.11, `BuiltinImporter` looks for none inside a package."""

    @staticmethod
    def find_spec(name: str, path: object = None, target: object = None) -> "ModuleSpec | None":
        """The module's spec, or None where it is not linked."""
        return BuiltinImporter.find_spec(name) if path is not None else None


def main() -> None:
    """Become `runcvm-vsock-connect` or `fastvsock`. Does not return."""
    sys.meta_path.append(ExtensionFinder)
    if "".join(sys.argv[:1]).rpartition("/")[2] == CONNECT:
        if _signal.getsignal(_signal.SIGINT) == _signal.default_int_handler:  # else it is ignored, and stays so
            _signal.signal(_signal.SIGINT, _signal.SIG_DFL)
        from fastvsock.entry import main
    else:
        from fastvsock.cli import main
    main()
