"""The VMMs that the emulator can stand in for, and what differs between them.

Both descend from one code, so most rules are the same: flow control, the buffer of 64 KiB, the deadline of 2 s. The
facts about Firecracker were measured (1.12.1). Those about Cloud Hypervisor are from the sources of 53.0
(csm/connection.rs and unix/muxer.rs in virtio-devices/src/vsock); before 53.0 it closed as Firecracker does, and before
47.0 it read the CONNECT line as Firecracker does.
"""

from collections.abc import Callable
from dataclasses import dataclass

from .request_line import cloud_hypervisor_line, cloud_hypervisor_port, firecracker_line, firecracker_port


@dataclass(frozen=True)
class Vmm:
    """One VMM's rules: how it reads the CONNECT line, and whether it passes half-closes on, both ways.

    Where it does not, a half-close of the host closes both directions, and one of the guest stays hidden.
    """

    request_line: Callable[[bytes], int | None]
    requested_port: Callable[[bytes], int]
    passes_half_closes: bool


VMMS = {
    "firecracker": Vmm(firecracker_line, firecracker_port, passes_half_closes=False),
    "cloud-hypervisor": Vmm(cloud_hypervisor_line, cloud_hypervisor_port, passes_half_closes=True),
}
