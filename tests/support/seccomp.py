"""Docker's default seccomp profile, for a command: `python -m support.seccomp COMMAND...`. On x86_64.

The profile allows by name; this refuses by number what it leaves out, which comes to the same for the calls that there
are (https://docs.docker.com/engine/security/seccomp/, moby's profiles/seccomp/default.json of version 28, without
capabilities): with EPERM, and with ENOSYS what the profile does not know yet.
"""

import ctypes
import errno
import os
import sys

# asm/unistd_64.h
DENIED = {
    "_sysctl": 156, "acct": 163, "add_key": 248, "bpf": 321, "clock_settime": 227, "create_module": 174,
    "delete_module": 176, "fanotify_init": 300, "finit_module": 313, "fsconfig": 431, "fsmount": 432, "fsopen": 430,
    "fspick": 433, "get_kernel_syms": 177, "get_mempolicy": 239, "init_module": 175, "io_uring_enter": 426,
    "io_uring_register": 427, "io_uring_setup": 425, "ioperm": 173, "iopl": 172, "kcmp": 312, "kexec_file_load": 320,
    "kexec_load": 246, "keyctl": 250, "lookup_dcookie": 212, "mbind": 237, "migrate_pages": 256, "mount": 165,
    "mount_setattr": 442, "move_mount": 429, "move_pages": 279, "nfsservctl": 180, "open_by_handle_at": 304,
    "open_tree": 428, "perf_event_open": 298, "personality": 135, "pivot_root": 155, "process_vm_readv": 310,
    "process_vm_writev": 311, "ptrace": 101, "query_module": 178, "quotactl": 179, "quotactl_fd": 443, "reboot": 169,
    "request_key": 249, "set_mempolicy": 238, "set_mempolicy_home_node": 450, "setdomainname": 171, "sethostname": 170,
    "setns": 308, "settimeofday": 164, "swapoff": 168, "swapon": 167, "sysfs": 139, "syslog": 103, "umount2": 166,
    "unshare": 272, "uselib": 134, "userfaultfd": 323, "ustat": 136, "vhangup": 153, "vserver": 236,
}  # fmt: skip
SOCKET, CLONE, CLONE3, FIRST_UNKNOWN = 41, 56, 435, 463
NAMESPACES = 0x7E020000  # CLONE_NEW*
AF_VSOCK = 40

LOAD, EQUAL, AT_LEAST, ANY_BIT, RETURN = 0x20, 0x15, 0x35, 0x45, 0x06  # linux/bpf_common.h
NUMBER, FIRST_ARGUMENT = 0, 16  # struct seccomp_data
ALLOW, ERRNO = 0x7FFF0000, 0x00050000
PR_SET_SECCOMP, SECCOMP_MODE_FILTER, PR_SET_NO_NEW_PRIVS = 22, 2, 38


class Row(ctypes.Structure):
    """struct sock_filter: an operation, how many rows to skip if it is true and if not, and a number."""

    _fields_ = (("code", ctypes.c_ushort), ("yes", ctypes.c_ubyte), ("no", ctypes.c_ubyte), ("k", ctypes.c_uint))


class Program(ctypes.Structure):
    """struct sock_fprog"""

    _fields_ = (("length", ctypes.c_ushort), ("rows", ctypes.POINTER(Row)))


def rows() -> list[tuple[int, int, int, int]]:
    """The filter."""
    found = [(LOAD, 0, 0, NUMBER)]
    for number in DENIED.values():
        found += [(EQUAL, 0, 1, number), (RETURN, 0, 0, ERRNO | errno.EPERM)]
    for test, number in ((EQUAL, CLONE3), (AT_LEAST, FIRST_UNKNOWN)):  # Go and glibc go on with clone(2)
        found += [(test, 0, 1, number), (RETURN, 0, 0, ERRNO | errno.ENOSYS)]
    for call, test, argument in ((CLONE, ANY_BIT, NAMESPACES), (SOCKET, EQUAL, AF_VSOCK)):
        found += [(EQUAL, 0, 4, call), (LOAD, 0, 0, FIRST_ARGUMENT), (test, 0, 1, argument)]
        found += [(RETURN, 0, 0, ERRNO | errno.EPERM), (RETURN, 0, 0, ALLOW)]
    return [*found, (RETURN, 0, 0, ALLOW)]


def confine() -> None:
    """Put this process, and all that it becomes and starts, under the filter. Raises `OSError`."""
    filtered = rows()
    program = Program(len(filtered), (Row * len(filtered))(*(Row(*row) for row in filtered)))
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) or libc.prctl(
        PR_SET_SECCOMP, SECCOMP_MODE_FILTER, ctypes.byref(program), 0, 0
    ):
        raise OSError(ctypes.get_errno(), "the filter was not accepted")


if __name__ == "__main__":
    confine()
    os.execvp(sys.argv[1], sys.argv[1:])
