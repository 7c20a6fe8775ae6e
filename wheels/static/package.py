"""The binary as a wheel, for `pip install`, `uv tool install` or plain `unzip`: its scripts are the program itself.

A static file serves both C libraries, so one wheel has both platform tags. It holds no module of Python's, and installs
beside any Python; it has the same two commands as the package `fastvsock`, and one of the two is enough.
"""

import base64
import hashlib
import time
import zipfile
from pathlib import Path

from wheels.build import EPOCH
from wheels.common import ROOT, version

NAME = "fastvsock_static"
COMMANDS = ("fastvsock", "runcvm-vsock-connect")
TAGS = ("manylinux_2_17", "musllinux_1_2")  # what installers know the two C libraries by
METADATA = """\
Metadata-Version: 2.4
Name: fastvsock-static
Version: {version}
Summary: fastvsock as one static executable, which needs neither Python nor a C library
License-Expression: Apache-2.0 AND PSF-2.0 AND MIT
License-File: LICENSE
License-File: NOTICE
Keywords: vsock,firecracker,cloud-hypervisor,microvm,runcvm,splice
Classifier: Environment :: Console
Classifier: Intended Audience :: System Administrators
Classifier: Operating System :: POSIX :: Linux
Classifier: Topic :: System :: Networking
Description-Content-Type: text/markdown

The commands `fastvsock` and `runcvm-vsock-connect` of the package
[fastvsock](https://pypi.org/project/fastvsock/), with the interpreter that they run on linked in: one static
executable for any Linux, which starts faster than an installed one. There is nothing to import in it; programs in
Python want `fastvsock` itself. Install one of the two, as both have the same commands.
"""
WHEEL = """\
Wheel-Version: 1.0
Generator: fastvsock ({version})
Root-Is-Purelib: false
"""


def platforms(machine: str) -> list[str]:
    """The platform tags of the wheel for a machine."""
    return [f"{tag}_{machine}" for tag in TAGS]


def wheel_name(machine: str) -> str:
    """The file name of the wheel for a machine."""
    return f"{NAME}-{version()}-py3-none-{'.'.join(platforms(machine))}.whl"


def pack(binary: Path, machine: str, notice: str, output: Path) -> Path:
    """Write the wheel with `binary` for `machine` into `output`, and return its path."""
    stem = f"{NAME}-{version()}"
    info = f"{stem}.dist-info"
    tags = "".join(f"Tag: py3-none-{platform}\n" for platform in platforms(machine))
    files = {f"{stem}.data/scripts/{command}": binary.read_bytes() for command in COMMANDS}
    files |= {
        f"{info}/licenses/LICENSE": (ROOT / "LICENSE").read_bytes(),
        f"{info}/licenses/NOTICE": notice.encode(),
        f"{info}/METADATA": METADATA.format(version=version()).encode(),
        f"{info}/WHEEL": (WHEEL.format(version=version()) + tags).encode(),
    }
    record = "".join(f"{path},{record_digest(data)},{len(data)}\n" for path, data in files.items())
    files[f"{info}/RECORD"] = f"{record}{info}/RECORD,,\n".encode()
    path = output / wheel_name(machine)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=9) as archive:
        for name, data in files.items():
            entry = zipfile.ZipInfo(name, time.gmtime(EPOCH)[:6])
            entry.compress_type = zipfile.ZIP_DEFLATED
            entry.external_attr = (0o100755 if "/scripts/" in name else 0o100644) << 16
            archive.writestr(entry, data)
    return path


def record_digest(data: bytes) -> str:
    """A file's SHA-256 as RECORD has it: PEP 376."""
    return "sha256=" + base64.urlsafe_b64encode(hashlib.sha256(data).digest()).rstrip(b"=").decode()
