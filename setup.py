"""Builds the splice engine (Cython) where a C compiler is; without one the package installs with the copy engine alone.

FASTVSOCK_REQUIRE_SPLICE=1 makes a failed build an error, which is what wheels are built with.

The program `runcvm-vsock-connect` is a file of its own, not one of pyproject.toml's console scripts: the wrapper that
pip before 25.2 writes for those imports `re`, which is a third of the whole start. Installers replace `#!python` by
their interpreter. Everything else about the package stands in pyproject.toml.
"""

import os
import sys
import sysconfig

from Cython.Build import cythonize
from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext
from setuptools.errors import BaseError, CCompilerError

# The Limited API of 3.11: one binary for every later CPython. The free-threaded builds have no such API yet.
LIMITED = not sysconfig.get_config_var("Py_GIL_DISABLED")


class OptionalBuildExt(build_ext):
    """Goes on without the splice engine, and says so in one line."""

    def run(self) -> None:
        try:
            super().run()
        except (BaseError, CCompilerError, OSError) as error:
            if os.environ.get("FASTVSOCK_REQUIRE_SPLICE") == "1":
                raise
            reason = str(error).partition("\n")[0]
            print(f"fastvsock: installed without the splice engine, the copy engine serves ({reason})", file=sys.stderr)
            self.extensions.clear()


setup(
    scripts=["src/scripts/runcvm-vsock-connect"],
    ext_modules=cythonize(
        [
            Extension(
                f"fastvsock.{name}",
                [f"src/fastvsock/{name.replace('.', '/')}.pyx"],
                define_macros=[("Py_LIMITED_API", "0x030B0000")] if LIMITED else [],
                py_limited_api=LIMITED,
            )
            for name in ("engines._splice", "engines._frames", "copying._openat2")
        ]
    ),
    cmdclass={"build_ext": OptionalBuildExt},
    options={"bdist_wheel": {"py_limited_api": "cp311"}} if LIMITED else {},
)
