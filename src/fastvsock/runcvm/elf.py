"""Reads from an ELF file what it was built for: elf(5)."""

import struct
from collections.abc import Iterator
from dataclasses import dataclass

MACHINES = {62: "x86_64", 183: "aarch64", 40: "arm", 243: "riscv64"}  # e_machine: elf.h
WORDS_OF_64_BITS, LITTLE_ENDIAN = 2, 1  # e_ident[EI_CLASS], e_ident[EI_DATA]
ET_EXEC = 2
PT_DYNAMIC, PT_INTERP = 2, 3


@dataclass(frozen=True)
class Build:
    """What an ELF file was built for. `libc` is ``glibc``, ``musl``, or empty if unknown."""

    machine: str
    libc: str

    def __str__(self) -> str:
        return f"{self.machine} {self.libc}".strip()

    def fits(self, other: "Build") -> bool:
        """Whether an object of this build may be loaded by a program of the build `other`."""
        return self.machine == other.machine and (not self.libc or not other.libc or self.libc == other.libc)


def build_of(data: bytes) -> Build | None:
    """What the ELF file `data` was built for; None for anything else."""
    if data[:4] != b"\x7fELF" or len(data) < 20:
        return None
    machine = int.from_bytes(data[18:20], "little")
    # The names of the C libraries, among the libraries needed or in the linker itself.
    libc = "musl" if b"libc.musl-" in data or b"ld-musl-" in data else "glibc" if b"libc.so.6" in data else ""
    return Build(MACHINES.get(machine, f"machine {machine}"), libc)


def is_static_program(data: bytes) -> bool:
    """Whether an ELF file is a program that needs no other file to run, neither a dynamic linker nor a library."""
    if tuple(data[4:6]) != (WORDS_OF_64_BITS, LITTLE_ENDIAN) or int.from_bytes(data[16:18], "little") != ET_EXEC:
        return False
    try:
        return not {PT_DYNAMIC, PT_INTERP} & {*_segments(data)}
    except struct.error:  # cut off
        return False


def _segments(data: bytes) -> Iterator[int]:
    """The type of each entry of the program header table."""
    (table,) = struct.unpack_from("<Q", data, 32)
    size, count = struct.unpack_from("<HH", data, 54)
    for index in range(count):
        yield struct.unpack_from("<I", data, table + index * size)[0]
