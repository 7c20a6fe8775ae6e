"""The VMM's side of a hybrid vsock and a guest behind it, without a VM: for demos, tests and development.

`Emulator` serves a UDS; `Exec`, `Tcp`, `echo`, `discard` and `chargen` are services for the guest's ports.
"""

from .emulator import Emulator as Emulator
from .guest import DEFAULT_SERVICES as DEFAULT_SERVICES
from .guest import Exec as Exec
from .guest import Service as Service
from .guest import Tcp as Tcp
from .guest import chargen as chargen
from .guest import discard as discard
from .guest import echo as echo
