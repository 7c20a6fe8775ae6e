"""NOTICE: what is in the binary that others wrote, with the texts that their licences ask to go along."""

from wheels.common import ROOT
from wheels.static.cpython import Library, Zig, pins

HEAD = """\
fastvsock {version} as one static executable

The file contains, linked together:

1. fastvsock, under the Apache License 2.0, and code that Cython generated from it, with utility code of Cython's under
   the same licence.
2. CPython of Debian's source package {package}, under the PSF License Agreement and, for
   parts of it, the licences of "Licenses and Acknowledgements for Incorporated Software" below. Changed against
   CPython: Debian's patches are applied; the interpreter looks for no library on the disk (Modules/getpath.c); the
   codec `idna` is another; modules that fastvsock does not use are left out.
3. musl, the C library, as Zig ships it, under the MIT license.
4. Parts of Zig's own run-time library (compiler_rt and parts of its C library), under the MIT license.

Their texts follow in this order.
"""
RULE = "-" * 78


def notice(version: str, python: Library, zig: Zig) -> str:
    """The text of NOTICE for the release `version`."""
    incorporated = (python.folder / "license.rst").read_text().partition(".. _OtherLicenses:")[2]
    texts = (
        (ROOT / "LICENSE").read_text(),
        (python.folder / "LICENSE").read_text(),
        incorporated,
        (zig.library / "libc" / "musl" / "COPYRIGHT").read_text(),
        (zig.library.parent / "LICENSE").read_text(),
    )
    head = HEAD.format(version=version, package=pins().package)
    return f"\n{RULE}\n\n".join((head, *(f"{text.strip()}\n" for text in texts)))
