# cython: language_level=3, binding=False, freethreading_compatible=True
"""The splice engine: a pump that moves bytes inside the kernel, never through this process' memory.

How a pump moves them depends on what its two ends are:
- a pipe and anything: one splice(2) a chunk, directly;
- a regular file and a socket: sendfile(2);
- no pipe at all: splice into a pipe of the pump's own (`between`), and from there to the target.
The call is tried first, and poll(2) follows only on EAGAIN: while data flows, one system call a chunk is all.

splice(2) says EAGAIN without saying which end was short. The pump waits for the end that was short last time and,
if that end turns out to be ready, for the other: one call too many when the stream changes its mind, none while
it is steady.

Blocking nowhere but in poll(2) is what lets a pump be stopped. A pipe does as SPLICE_F_NONBLOCK says; a socket that
is written to does as its own O_NONBLOCK says (fs/splice.c), which is not ours to set on an inherited one: such a
socket is asked with poll(2) first, and given no more than it surely has room for.

Down, from the VMM's socket to the near end, a pump has two duties more. It watches whether anybody still reads the
target. And when the reader has stalled for a while, it drains the socket into `between`: what a closed guest had yet
to deliver is thrown away by Firecracker at the next new connection from 2 s on (vsock/unix/muxer_killq.rs).

A free-threaded CPython may run all of this without its lock: a pump belongs to the thread that runs it, but for the flag
and the counts, which are single words, and the budget has a lock of its own.

An idle pump holds no pipe, and a pipe is made larger than usual only while a stream fills it: see `PipeBudget`.
"""

from cpython.exc cimport PyErr_CheckSignals
from libc.errno cimport (
    EAGAIN, EBADF, ECONNRESET, EINTR, EINVAL, EIO, ENOSYS, EOPNOTSUPP, EPERM, EPIPE, ESPIPE, errno,
)
from posix.types cimport mode_t, off_t

from . import budget

cdef extern from *:
    """
    #ifndef _GNU_SOURCE
    #define _GNU_SOURCE
    #endif
    #include <errno.h>
    #include <fcntl.h>
    #include <poll.h>
    #include <linux/sockios.h>
    #include <sys/ioctl.h>
    #include <sys/prctl.h>
    #include <sys/sendfile.h>
    #include <sys/socket.h>
    #include <sys/stat.h>
    #include <sys/sysmacros.h>
    #include <time.h>
    #include <unistd.h>
    typedef struct stat status;
    /* The numbers of /dev/null: Documentation/admin-guide/devices.txt */
    #define IS_NULL(status) (S_ISCHR((status).st_mode) && (status).st_rdev == makedev(1, 3))
    #define SET_ERRNO(value) (errno = (value))  /* an assignment in Cython would make a local variable */
    #if CYTHON_COMPILING_IN_LIMITED_API
    /* Cython 3 would import `inspect` and `collections` here, 15 ms and 20 modules, to ask for constants: these of a
       code object's flags, and those of types in pattern matching, of which there is none. */
    #define __Pyx_init_co_variables() 0
    #define __Pyx_init_tpflags_variables() 0
    #define CO_OPTIMIZED 0x1
    #define CO_NEWLOCALS 0x2
    #endif
    """
    enum: F_GETFL, F_GETPIPE_SZ, F_SETPIPE_SZ, O_ACCMODE, O_CLOEXEC, O_NONBLOCK, O_WRONLY
    enum: CLOCK_MONOTONIC
    enum: POLLIN, POLLOUT
    enum: PR_SET_CHILD_SUBREAPER
    enum: SPLICE_F_MOVE, SPLICE_F_NONBLOCK
    enum: SIOCINQ, SIOCOUTQ
    enum: SOL_SOCKET, SO_DOMAIN, SO_SNDBUF, SO_SNDBUFFORCE, AF_UNIX
    struct pollfd:
        int fd
        short events
        short revents
    struct timespec:
        long tv_sec
        long tv_nsec
    ctypedef struct status:
        mode_t st_mode
    bint IS_NULL(status) nogil
    void SET_ERRNO(int) nogil
    bint S_ISBLK(mode_t) nogil
    bint S_ISFIFO(mode_t) nogil
    bint S_ISREG(mode_t) nogil
    bint S_ISSOCK(mode_t) nogil
    int clock_gettime(int, timespec *) nogil
    int close(int) nogil
    int fcntl(int, int, ...) nogil
    int fstat(int, status *) nogil
    int ioctl(int, unsigned long, ...) nogil
    int getsockopt(int, int, int, void *, unsigned int *) nogil
    int pipe2(int *, int) nogil
    int poll(pollfd *, unsigned long, int) nogil
    int prctl(int, unsigned long, unsigned long, unsigned long, unsigned long) nogil
    int setsockopt(int, int, int, const void *, unsigned int) nogil
    ssize_t read(int, void *, size_t) nogil
    ssize_t sendfile(int, int, off_t *, size_t) nogil
    ssize_t splice(int, void *, int, void *, size_t, unsigned int) nogil

# How run() ends: the values of engines/__init__.py, held equal by a test.
cdef enum:
    EOF = 0
    SOURCE = 1
    TARGET = 2
    STOPPED = 3
    UNSUPPORTED = 4
    IDLE = 5
    # These two stay inside this file.
    MORE = 6
    SIGNALS = 7  # back to the interpreter, for its signal handlers

cdef enum:
    PIPE_SIZE = 1 << 20  # the kernel's default for fs.pipe-max-size
    CALLS = 256  # between two looks at the interpreter's signals
    STALL_MS = 500  # a reader that stalls for less costs no second splice
    REST_MS = 1000  # without a byte, after which pipes are given back

cdef struct Pipe:
    int fd  # -1 where the end in question is not a pipe
    int usual, size  # in bytes, before it was first made larger, and since
    int taken  # of the budget
    bint tried  # whether it was made as large as it may be, since it last rested


cdef class Pump:
    """Moves bytes from the descriptor `source` to the descriptor `target` until end of file.

    `wake`, a descriptor of this pump's alone, becomes readable when the pump has to look up: it was stopped, or Python
    has a signal to handle (`signal.set_wakeup_fd`). `down` marks the direction from the VMM to the near end (see the
    head of this file). The pump closes none of the three.
    """

    cdef int source, target, wake
    cdef bint down, direct, from_pipe, from_file, source_blocks
    cdef size_t target_bound  # what a blocking target surely takes once it polls writable; 0: it does not block
    cdef size_t chunk
    cdef Pipe inherited[2]  # of the ends, those that are pipes
    cdef size_t filled_by  # bytes in one call that show a stream which fills an inherited pipe
    cdef int between[2]
    cdef Pipe own  # `between`
    cdef size_t held  # bytes in `between`
    cdef bint full, ended
    cdef bint source_ready, target_ready  # as wait() found them
    cdef int waited, usual  # SOURCE or TARGET: the end waited for since something moved, and the one before
    cdef int broken  # the errno with which the source ended, reported once `between` is delivered
    cdef int error
    cdef int look  # milliseconds after which a wait ends run(), or -1
    cdef volatile bint stopped
    cdef volatile unsigned long long count
    cdef volatile double counted_at  # seconds of CLOCK_MONOTONIC, taken before the last call that moved bytes

    def __cinit__(self, int source, int target, int wake, bint down=False):
        cdef status near, far
        self.between[0] = self.between[1] = -1
        self.inherited[0].fd = self.inherited[1].fd = self.own.fd = -1
        self.source, self.target, self.wake, self.down = source, target, wake, down
        self.chunk = PIPE_SIZE
        self.filled_by = <size_t>-1
        self.usual = SOURCE
        if fstat(source, &near) or fstat(target, &far):
            return  # the first call will fail alike, and run() will say so
        # /dev/null does not splice, and the copy engine would be loaded for nothing, unless it has an error to report.
        self.ended = IS_NULL(near) and (fcntl(source, F_GETFL) & O_ACCMODE) != O_WRONLY
        self.from_pipe = S_ISFIFO(near.st_mode)
        self.from_file = (S_ISREG(near.st_mode) or S_ISBLK(near.st_mode)) and S_ISSOCK(far.st_mode)
        self.direct = self.from_pipe or self.from_file or S_ISFIFO(far.st_mode)
        if self.from_pipe:
            self.inherit(0, source)
        if S_ISFIFO(far.st_mode):
            self.inherit(1, target)
        if not (S_ISFIFO(near.st_mode) or fcntl(source, F_GETFL) & O_NONBLOCK):
            # Of all that is no pipe, Unix sockets alone heed SPLICE_F_NONBLOCK: net/unix/af_unix.c
            self.source_blocks = not (S_ISSOCK(near.st_mode) and _option(source, SO_DOMAIN) == AF_UNIX)
        if S_ISSOCK(far.st_mode) and not fcntl(target, F_GETFL) & O_NONBLOCK:
            # Writable to poll(2) means that a third is free: sk_stream_is_writeable(), unix_writable().
            _raise_send_buffer(target)
            self.target_bound = max(_option(target, SO_SNDBUF) // 4, 1)

    def __dealloc__(self):
        self.close_between()

    @property
    def moved(self) -> int:
        """Bytes handed to the target so far."""
        return self.count

    @property
    def moved_at(self) -> float:
        """The time of the last call that moved bytes, as `time.monotonic` counts; 0.0 if none did."""
        return self.counted_at

    def stop(self) -> None:
        """Let run() end; the caller also makes `wake` readable."""
        self.stopped = True

    def leftover(self) -> int:
        """After UNSUPPORTED: a pipe with the bytes that left the source but not for the target, or -1."""
        _close(&self.between[1])
        return self.between[0] if self.held else -1

    def run(self, int look=-1) -> tuple[int, int]:
        """Move bytes until an end is reached: EOF, SOURCE, TARGET, STOPPED or UNSUPPORTED, with an errno or 0.

        SOURCE and TARGET name the end that failed. With `look` (milliseconds) it also returns, with IDLE, after a wait
        of that long; the next call goes on. Python's signal handlers run in between, and may raise.
        """
        cdef int end = SIGNALS
        self.look = look
        try:
            while end == SIGNALS:
                with nogil:
                    end = self.work()
                PyErr_CheckSignals()
        finally:
            if end != IDLE:
                self.let_go()
        return end, self.error

    cdef int work(self) noexcept nogil:
        cdef int call, end
        for call in range(CALLS):
            if self.stopped:
                return STOPPED
            if self.held:
                end = self.drain()
            elif self.ended:
                self.error = self.broken
                return SOURCE if self.broken else EOF
            elif self.direct:
                end = self.forward()
            else:
                end = self.fill()
            if end != MORE:
                return end
        return SIGNALS

    cdef int forward(self) noexcept nogil:
        """From the source to the target in one call."""
        cdef double now = _monotonic()
        cdef ssize_t n
        if self.from_file:
            n = sendfile(self.target, self.source, NULL, PIPE_SIZE)
        elif self.from_pipe:
            n = self.give(self.source, self.chunk)
        else:
            n = self.take(self.target, self.chunk)
        if n > 0:
            self.count += n
            self.counted_at = now
            self.waited = 0
            if <size_t>n >= self.filled_by:
                self.grow_inherited()
            return MORE
        if n == 0:
            return EOF
        if errno == EAGAIN:
            return self.await_short_end()
        if self.from_file and errno not in (EINTR, EPIPE, ECONNRESET):
            self.error = errno
            return UNSUPPORTED  # the file's error or the socket's: the copy engine finds out
        return self.failed(TARGET if self.from_pipe or self.from_file else SOURCE)

    cdef int await_short_end(self) noexcept nogil:
        cdef int end
        if self.waited == SOURCE and self.source_ready and self.grow_inherited():
            return MORE  # the target was full
        if self.waited:
            self.usual = TARGET if self.waited == SOURCE else SOURCE
        self.waited = self.usual
        if self.usual == SOURCE:
            return self.wait(True, False, -1)
        end = self.wait(False, True, STALL_MS if self.down else -1)
        if end == MORE and not self.target_ready and self.open_between():
            return self.fill()
        return end

    cdef int fill(self) noexcept nogil:
        """From the source into `between`."""
        cdef ssize_t n
        cdef int end
        if self.own.fd < 0 and not _is_ready(self.source, POLLIN):
            return self.wait(True, False, -1)
        if not self.open_between():
            self.error = errno
            return UNSUPPORTED  # no descriptors left: the copy engine needs none
        n = self.take(self.between[1], PIPE_SIZE)
        if n > 0:
            self.held += n
            if n >= self.own.size // 2:
                _grow(&self.own)
            return MORE
        if n == 0:
            self.ended = True
            return MORE
        if errno != EAGAIN:
            end = self.failed(SOURCE)
            if end != SOURCE:
                return end
            self.ended, self.broken = True, self.error
            return MORE
        if self.held:
            self.full = not _grow(&self.own)  # of short packets perhaps, each of which takes a page's place
            return MORE
        return self.wait(True, False, -1)

    cdef int drain(self) noexcept nogil:
        """From `between` to the target; while the target has no room, more is taken in on the way down."""
        cdef double now = _monotonic()
        cdef ssize_t n = self.give(self.between[0], self.held)
        cdef int end
        if n > 0:
            self.held -= n
            self.count += n
            self.counted_at = now
            self.full = False
            self.waited = 0
            return MORE
        if n == 0:
            self.error = EIO
            return TARGET
        if errno != EAGAIN:
            return self.failed(TARGET)
        end = self.wait(self.down and not (self.full or self.ended), True, -1)
        if end == MORE and self.source_ready and not self.target_ready:
            return self.fill()
        return end

    cdef int failed(self, int side) noexcept nogil:
        if errno == EINTR:
            return SIGNALS
        self.error = errno
        if errno in (EINVAL, ENOSYS, EPERM, EOPNOTSUPP, EBADF, ESPIPE):
            return UNSUPPORTED
        return TARGET if errno == EPIPE else side

    cdef ssize_t take(self, int pipe, size_t size) noexcept nogil:
        if self.source_blocks and not _is_ready(self.source, POLLIN):
            return -1
        return splice(self.source, NULL, pipe, NULL, size, SPLICE_F_MOVE | SPLICE_F_NONBLOCK)

    cdef ssize_t give(self, int pipe, size_t size) noexcept nogil:
        if self.target_bound:
            if not _is_ready(self.target, POLLOUT):
                return -1
            size = min(size, self.target_bound)
        return splice(pipe, NULL, self.target, NULL, size, SPLICE_F_MOVE | SPLICE_F_NONBLOCK)

    cdef int wait(self, bint source, bint target, int timeout) noexcept nogil:
        """Until one of the ends asked for is ready, or `timeout` milliseconds."""
        cdef pollfd[3] ends
        cdef char[64] signals
        cdef int ready
        ends[0] = [self.source if source else -1, POLLIN, 0]
        ends[1] = [self.target if target or self.down else -1, POLLOUT if target else 0, 0]
        ends[2] = [self.wake, POLLIN, 0]
        if timeout < 0:
            timeout = self.patience(source and not target)
        ready = poll(ends, 3, timeout)
        if ready < 0:
            return self.failed(SOURCE)
        if ready == 0 and source and not target:
            self.rest()
        if ready == 0 and timeout == self.look:
            self.error = 0
            return IDLE
        if ends[2].revents:
            read(self.wake, signals, sizeof(signals))
            return SIGNALS
        if ends[1].revents and not target:  # POLLERR or POLLHUP: nobody reads it any more
            self.error = EPIPE
            return TARGET
        self.source_ready = ends[0].revents != 0
        self.target_ready = ends[1].revents != 0
        return MORE

    cdef bint open_between(self) noexcept nogil:
        if self.between[0] >= 0:
            return True
        if pipe2(self.between, O_CLOEXEC):
            return False
        self.own = [self.between[0], 0, fcntl(self.between[0], F_GETPIPE_SZ), 0, True]
        if self.own.size > 0 and _take(self.own.size, False):
            self.own.taken = self.own.size
            self.own.tried = False
        else:
            fcntl(self.own.fd, F_SETPIPE_SZ, 1)  # a page: the least that there is
        return True

    cdef void close_between(self) noexcept nogil:
        _close(&self.between[0])
        _close(&self.between[1])
        _give_back(self.own.taken)
        self.own = [-1, 0, 0, 0, False]

    cdef void inherit(self, int which, int fd) noexcept nogil:
        cdef int size = fcntl(fd, F_GETPIPE_SZ)
        if size < 0:
            return  # a sandbox refuses to say, and it stays as it is
        self.inherited[which] = [fd, size, size, 0, False]
        self.chunk = max(self.chunk, size)
        self.filled_by = size // 2

    cdef bint grow_inherited(self) noexcept nogil:
        cdef bint source = _grow(&self.inherited[0]), target = _grow(&self.inherited[1])
        return source or target

    cdef void shrink_inherited(self) noexcept nogil:
        _shrink(&self.inherited[0])
        _shrink(&self.inherited[1])

    cdef void let_go(self) noexcept nogil:
        """The pump is over: what an inherited pipe keeps, for what it still holds, is its owner's."""
        self.shrink_inherited()
        _give_back(self.inherited[0].taken + self.inherited[1].taken)
        self.inherited[0].taken = self.inherited[1].taken = 0

    cdef int patience(self, bint for_source) noexcept nogil:
        """How long to wait, in milliseconds: not for ever where there are pages to give back meanwhile."""
        cdef bint holds = self.own.fd >= 0 or self.inherited[0].tried or self.inherited[1].tried
        if for_source and holds and not self.held and not 0 <= self.look <= REST_MS:
            return REST_MS
        return self.look

    cdef void rest(self) noexcept nogil:
        """Give back the pages of pipes through which nothing goes."""
        self.shrink_inherited()
        if not self.held:
            self.close_between()


def queues(int fd) -> tuple[int, int]:
    """The bytes in a socket's two queues: received and not read here, sent and not read there. A pipe has the first."""
    cdef int unread = 0, unsent = 0
    ioctl(fd, SIOCINQ, &unread)
    ioctl(fd, SIOCOUTQ, &unsent)
    return unread, unsent


def has_closed(int fd, int wake) -> bool:
    """Whether a Unix socket's peer has closed; with `wake` (not -1), wait until it has or until `wake` is readable."""
    cdef pollfd[2] ends
    ends[0] = [fd, 0, 0]
    ends[1] = [wake, POLLIN, 0]
    with nogil:
        while poll(ends, 2, 0 if wake < 0 else -1) < 0 and errno == EINTR:
            pass
    return ends[0].revents != 0


cdef double _monotonic() noexcept nogil:
    cdef timespec now
    clock_gettime(CLOCK_MONOTONIC, &now)
    return now.tv_sec + now.tv_nsec * 1e-9


def adopt_orphans() -> None:
    """Make this process the parent of descendants that lose theirs: PR_SET_CHILD_SUBREAPER, prctl(2). No pump needs it:
    it stands here because this is the package's one module in C, and a static program can load no libc for ctypes."""
    prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


cdef bint _take(int size, bint growing) noexcept with gil:
    return budget.take(size, growing)


cdef void _give_back(int size) noexcept nogil:
    if size:
        with gil:
            budget.give_back(size)


cdef bint _grow(Pipe *pipe) noexcept nogil:
    """Make a pipe as large as the budget and the kernel allow. Whether it has grown."""
    cdef int size, want = PIPE_SIZE
    if pipe.fd < 0 or pipe.tried:
        return False
    pipe.tried = True
    size = fcntl(pipe.fd, F_GETPIPE_SZ)
    while want > size:
        if _take(want - size, True):
            if fcntl(pipe.fd, F_SETPIPE_SZ, want) >= 0:
                pipe.size = want
                pipe.taken += want - size
                return True
            _give_back(want - size)
        want //= 2
    return False


cdef void _shrink(Pipe *pipe) noexcept nogil:
    """Give an inherited pipe its size back, or as little more as what it still holds takes."""
    cdef int size = pipe.usual
    pipe.tried = False
    if not pipe.taken:
        return
    if fcntl(pipe.fd, F_GETPIPE_SZ) != pipe.size:
        size = pipe.usual  # somebody else has changed it, and means it
    else:
        while size < pipe.size and fcntl(pipe.fd, F_SETPIPE_SZ, size) < 0:
            size *= 2
    _give_back(pipe.taken - (size - pipe.usual))
    pipe.taken = size - pipe.usual
    pipe.size = size
    pipe.tried = pipe.taken > 0


cdef bint _is_ready(int fd, short events) noexcept nogil:
    """Whether a descriptor may be used without blocking; errno is EAGAIN where not."""
    cdef pollfd one = [fd, events, 0]
    if poll(&one, 1, 0) > 0:
        return True
    SET_ERRNO(EAGAIN)
    return False


cdef void _raise_send_buffer(int fd) noexcept nogil:
    """Let an inherited Unix socket hold as much as a pipe, best effort: what may be sent at once without blocking grows
    with it, and a pump needs half the CPU time (bench: 0.18 to 0.06 s/GiB down a socketpair, Linux 6.18)."""
    cdef int want = PIPE_SIZE
    if _option(fd, SO_DOMAIN) != AF_UNIX or _option(fd, SO_SNDBUF) >= want:
        return  # TCP tunes its own, and would stop
    if setsockopt(fd, SOL_SOCKET, SO_SNDBUFFORCE, &want, sizeof(want)):
        setsockopt(fd, SOL_SOCKET, SO_SNDBUF, &want, sizeof(want))


cdef int _option(int fd, int name) noexcept nogil:
    cdef int value = 0
    cdef unsigned int size = sizeof(value)
    getsockopt(fd, SOL_SOCKET, name, &value, &size)
    return value


cdef void _close(int *fd) noexcept nogil:
    if fd[0] >= 0:
        close(fd[0])
        fd[0] = -1
