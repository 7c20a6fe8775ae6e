"""The few fields of an ELF executable that an image changes: its one writable segment. Names are those of elf(5)."""

import struct
from dataclasses import dataclass

from wheels.common import Failed

PT_LOAD, PF_W = 1, 2
E_PHOFF, E_SHOFF, E_PHENTSIZE, E_SHNUM = 32, 40, 54, 60
P_FILESZ = 32
HEADER = "<IIQQQQQQ"  # p_type, p_flags, p_offset, p_vaddr, p_paddr, p_filesz, p_memsz, p_align


@dataclass(frozen=True)
class Segment:
    """The writable segment: where its header is, and what is in it."""

    header: int
    offset: int
    filled: int  # bytes of it in the file; the rest begins as zero
    size: int  # bytes in memory


def writable(program: bytes) -> Segment:
    """The one writable segment of a program. Raises `Failed` where there is not exactly one."""
    (table,) = struct.unpack_from("<Q", program, E_PHOFF)
    each, count = struct.unpack_from("<HH", program, E_PHENTSIZE)
    found = []
    for header in range(table, table + each * count, each):
        kind, flags, offset, _, _, filled, size, _ = struct.unpack_from(HEADER, program, header)
        if kind == PT_LOAD and flags & PF_W:
            found.append(Segment(header, offset, filled, size))
    if len(found) != 1:
        raise Failed(f"the program has {len(found)} writable segments, and an image is for one: see LINK in build.py")
    return found[0]


def with_memory(program: bytes, memory: bytes, mark: bytes) -> bytes:
    """The program with `memory` as its writable segment, and what was linked there where `mark` is. Raises `Failed`."""
    segment = writable(program)
    room = mark.ljust(segment.filled, b"\0")
    place = program.find(room)
    if len(memory) != segment.size or place < 0 or program.find(room, place + 1) >= 0:
        raise Failed("the memory is not this program's")
    linked = program[segment.offset : segment.offset + segment.filled]
    data = bytearray(program[: segment.offset])
    data[place : place + len(linked)] = linked
    data += memory.rstrip(b"\0")
    # The sections' names and headers stood behind, and nothing needs them to run.
    struct.pack_into("<Q", data, segment.header + P_FILESZ, len(data) - segment.offset)
    struct.pack_into("<Q", data, E_SHOFF, 0)
    struct.pack_into("<HH", data, E_SHNUM, 0, 0)
    return bytes(data)
