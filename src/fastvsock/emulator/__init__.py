"""A VMM's side of a hybrid vsock with a guest behind it, without a VM: for demos, tests and development.

`Emulator` creates a UDS and serves it; its services are the guest's listeners. A test of a program that talks to a
guest needs no VM, and can look at both ends:

>>> import tempfile, fastvsock
>>> from fastvsock.emulator import Emulator, echo
>>> def time_service(guest):  # a port of the guest; the return closes it
...     guest.sendall(b"12:00")
>>> with tempfile.TemporaryDirectory() as folder:
...     with Emulator(f"{folder}/v.sock", {7: echo, 13: time_service}) as emulator:
...         with fastvsock.connect(emulator.uds, 13) as host:
...             host.recv(100)
b'12:00'

`Exec` runs a program for each connection, `Tcp` joins it to a TCP port, `Unix` to a Unix socket, and `echo`, `discard`
and `chargen` are what their names say. `Emulator.connect_to_host` is a connection that the guest makes.
``Emulator(uds, vmm="cloud-hypervisor")`` follows Cloud Hypervisor's rules instead of Firecracker's.
"""

from .emulator import Emulator as Emulator
from .guest import DEFAULT_SERVICES as DEFAULT_SERVICES
from .guest import Exec as Exec
from .guest import Service as Service
from .guest import Tcp as Tcp
from .guest import Unix as Unix
from .guest import chargen as chargen
from .guest import discard as discard
from .guest import echo as echo
from .vmm import VMMS as VMMS
