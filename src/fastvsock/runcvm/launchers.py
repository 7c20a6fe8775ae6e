"""Makes the launchers: files of a bundle that start fastvsock from it, wherever the bundle is seen.

A launcher is a shell script and a Python program in one file, since RunCVM's versions have started it directly, as
`bash PATH`, `sh PATH` and `python3 PATH`; run as the last, the shell's part is a string. It becomes the static
binary, or else starts Python: then with ``-I`` (an image's PYTHONPATH or PYTHONHOME are for its own Python, not for the
bundle's) and without `site`. The bundle's programs name an ELF interpreter of one mount point only, so its Python is
run through the bundle's own dynamic linker, which works wherever the bundle is seen; the binary needs none.
"""

import os
import re

from .binary import NAMED, PROGRAM

CONNECT = "scripts/runcvm-vsock-connect"
UMBRELLA = "scripts/fastvsock"

# Sets `root` to the folder of the bundle that the launcher itself is in.
SHELL = """\
#!/bin/sh
# {name}, of fastvsock {version}. Runs directly, as `python3 PATH` and as `sh PATH`.
''':'
fail() {{ echo "fastvsock: $2" >&2; exit "$1"; }}
self=$0
case $self in
  */*) ;;
  *) # `bash NAME` takes NAME from the current folder, or else from PATH
    found=$(command -v "$self") || found=./$self
    if [ -e "$self" ] && ! [ "$self" -ef "$found" ]; then
      fail 2 "$self is in this folder and in PATH: start it by its path"
    fi
    case $found in */*) self=$found;; *) self=./$found;; esac;;
esac
if [ -h "$self" ]; then
  link=$self
  self=$(readlink -f "$link") || fail 127 "$link is a link, and readlink is not in PATH: start the file itself"
fi
root=${{self%/*}}/{up}
"""
BY_PYTHON = """\
{bundled}command -v python3 >/dev/null || fail 127 "no python3 in this PATH: $PATH"
exec python3 {flags} "$self" "$@"
'''
import os
import sys

if not sys.flags.isolated:  # `python3 PATH`: no module from the current folder, nor from where a link lies
    value = os.environ.get("PYTHONPATH")
    here = [os.path.abspath(path) for path in value.split(":") if path[:1] != "/"] if value else []
    sys.path[:] = [path for path in sys.path[1:] if os.path.abspath(path) not in here]
sys.path.insert(0, os.path.dirname(os.path.realpath(__file__)) + "/{up}/{site}")
sys.argv[0] = "{name}"
from fastvsock.{module} import main

main()
"""
BUNDLED = """\
if [ -x "$root/{python}" ]; then exec {linker}"$root/{python}" {flags} "$self" "$@"; fi
"""
BY_BINARY = """\
[ -x "$root/{program}" ] || fail 127 "$root/{program} cannot be run: install fastvsock again"
exec "$root/{program}" "$@"
'''
import os
import sys

program = os.path.dirname(os.path.realpath(__file__)) + "/{up}/{program}"
try:
    os.execv(program, [program, *sys.argv[1:]])
except OSError:
    sys.stderr.write("fastvsock: " + program + " cannot be run: install fastvsock again\\n")
    sys.exit(127)
"""


def by_python(path: str, site: str, version: str, python: str, linker: bool) -> bytes:
    """The launcher for `path`, which finds the package at `site` and Python at `python` (empty: in PATH)."""
    module = "entry" if os.path.basename(path) == os.path.basename(CONNECT) else "cli"
    flags = "-IS" if module == "entry" else "-I"  # the umbrella finds optional extras through site
    through = '"$root/lib/ld" ' if linker else ""
    bundled = BUNDLED.format(python=python, linker=through, flags=flags) if python else ""
    return _launcher(BY_PYTHON, path, version, site=site, flags=flags, bundled=bundled, module=module)


def by_binary(path: str, version: str) -> bytes:
    """The launcher for `path`, which becomes the bundle's static binary."""
    program = NAMED if os.path.basename(path) == os.path.basename(CONNECT) else PROGRAM
    return _launcher(BY_BINARY, path, version, program=program)


def _launcher(ending: str, path: str, version: str, **facts: str) -> bytes:
    up = "/".join([".."] * path.count("/"))
    return (SHELL + ending).format(name=os.path.basename(path), version=version, up=up, **facts).encode()


def is_launcher(data: bytes) -> bool:
    """Whether a file is a launcher, of any version of fastvsock."""
    return re.match(rb"#!/bin/sh\n# [\w-]+, of fastvsock \S+ Runs directly", data) is not None


def becomes_binary(data: bytes) -> bool:
    """Whether a file is a launcher that becomes the static binary."""
    return is_launcher(data) and any(f'exec "$root/{program}"'.encode() in data for program in (NAMED, PROGRAM))
