# cython: language_level=3, binding=False
"""openat2(2), which Python's os module does not have: a path that is resolved below a folder, through no link at all.

Linux has it since 5.6. ENOSYS says that it is not there; some sandboxes say EPERM.
"""

from libc.errno cimport errno
from libc.stdint cimport uint64_t

import os

cdef extern from *:
    """
    #include <errno.h>
    #include <stdint.h>
    #include <sys/syscall.h>
    #include <unistd.h>
    #ifndef SYS_openat2
    #define SYS_openat2 437  /* the same on every architecture */
    #endif
    #if CYTHON_COMPILING_IN_LIMITED_API
    /* See engines/_splice.pyx. */
    #define __Pyx_init_co_variables() 0
    #define __Pyx_init_tpflags_variables() 0
    #define CO_OPTIMIZED 0x1
    #define CO_NEWLOCALS 0x2
    #endif
    struct how { uint64_t flags, mode, resolve; };  /* struct open_how of linux/openat2.h, which old headers lack */
    """
    struct how:
        uint64_t flags, mode, resolve
    long SYS_openat2
    long syscall(long, ...) nogil

cdef enum:
    NO_MAGICLINKS = 0x02
    NO_SYMLINKS = 0x04
    BENEATH = 0x08


def open_beneath(path: bytes, flags: int, folder: int) -> int:
    """Open `path`, which must stay below the descriptor `folder` and cross no link. Raises `OSError`."""
    cdef how how
    cdef const char *name = path
    cdef int at = folder
    cdef long fd
    cdef int number
    how.flags = flags
    how.mode = 0
    how.resolve = BENEATH | NO_SYMLINKS | NO_MAGICLINKS
    with nogil:
        fd = syscall(SYS_openat2, at, name, &how, sizeof(how))
        number = errno
    if fd < 0:
        raise OSError(number, os.strerror(number))
    return fd
