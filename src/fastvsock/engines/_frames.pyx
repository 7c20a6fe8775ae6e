# cython: language_level=3, binding=False
"""The framed pump without the interpreter's lock. The twin of `_framescopy.py`; frames.py says what a frame is.

At the host payload is spliced: up, a DATA frame is a header and what the pipe holds at that moment, as far as the credit
goes; down, the header is read alone, so that the payload is still in the socket for splice(2) to fetch. A regular file
is sent by sendfile(2). Small payloads, a keystroke for instance, are copied, for that takes one call and not two. Where
a socket does not splice well (`splices` is False: AF_VSOCK in a guest), everything is copied, through buffers that
hold a whole packet of a VMM's, header included.

Nothing blocks but poll(2). A target that has no room is waited for a moment, since another splice costs less than a
copy. After that what comes for it is held in memory, which the credit bounds, and the streams behind it go on.
"""

from cpython.exc cimport PyErr_CheckSignals
from libc.errno cimport EAGAIN, ECONNRESET, EINTR, EINVAL, EIO, ENOMEM, ENOSYS, EOPNOTSUPP, EPERM, EPIPE, errno
from libc.stdint cimport int64_t, uint32_t, uint64_t
from libc.stdlib cimport free, malloc, realloc
from libc.string cimport memcpy, memmove
from posix.types cimport mode_t, off_t

cdef extern from *:
    """
    #ifndef _GNU_SOURCE
    #define _GNU_SOURCE
    #endif
    #include <errno.h>
    #include <fcntl.h>
    #include <poll.h>
    #include <sys/ioctl.h>
    #include <sys/sendfile.h>
    #include <sys/socket.h>
    #include <sys/stat.h>
    #include <time.h>
    #include <unistd.h>
    typedef struct stat status;
    typedef struct timespec moment;
    #if CYTHON_COMPILING_IN_LIMITED_API
    /* See _splice.pyx. */
    #define __Pyx_init_co_variables() 0
    #define __Pyx_init_tpflags_variables() 0
    #define CO_OPTIMIZED 0x1
    #define CO_NEWLOCALS 0x2
    #endif
    """
    enum: CLOCK_MONOTONIC, FIONREAD, MSG_DONTWAIT, MSG_MORE, MSG_NOSIGNAL, SEEK_CUR
    enum: POLLIN, POLLOUT, POLLHUP, POLLERR
    enum: SPLICE_F_MOVE, SPLICE_F_NONBLOCK
    struct pollfd:
        int fd
        short events
        short revents
    ctypedef struct status:
        mode_t st_mode
        off_t st_size
    ctypedef struct moment:
        long tv_sec
        long tv_nsec
    bint S_ISFIFO(mode_t) nogil
    int clock_gettime(int, moment *) nogil
    int fstat(int, status *) nogil
    int ioctl(int, unsigned long, ...) nogil
    int poll(pollfd *, unsigned long, int) nogil
    off_t lseek(int, off_t, int) nogil
    ssize_t read(int, void *, size_t) nogil
    ssize_t recv(int, void *, size_t, int) nogil
    ssize_t send(int, const void *, size_t, int) nogil
    ssize_t sendfile(int, int, off_t *, size_t) nogil
    ssize_t splice(int, void *, int, void *, size_t, unsigned int) nogil
    ssize_t write(int, const void *, size_t) nogil

# The values of exchange.py and frames.py, held equal by a test.
cdef enum:
    MESSAGE = 0
    SOURCE_ENDED = 1
    TARGET_LOST = 2
    DELIVERED = 3
    STOPPED = 4
    CLOSED = 5
    BROKEN = 6
    WOKEN = 7
    TIMEOUT = 8
    FULL = 9

cdef enum:
    FILE = 1
    OWN = 4
    PIPE = 0

cdef enum:
    DATA = 0
    END = 1
    CREDIT = 2
    STOP = 3
    MESSAGES = 16
    HEADER = 8
    STREAMS = 4
    WINDOW = 1 << 16
    WINDOW_MAX = 1 << 20
    MAX_MESSAGE = 1 << 15

cdef enum:
    PADDING = 1
    STREAM = 2
    LENGTH = 3
    OVERRUN = 4
    AFTER_END = 5
    COUNT = 6
    EXCESS = 7
    TOO_LONG = 8

cdef enum:
    NONE = -1
    CALLS = 256  # between two looks at the interpreter's signals
    PACKET = 1 << 16  # what Firecracker takes of a guest at a time: a copied frame is one
    RECEIVE = 1 << 17  # bytes of one read of a socket that does not splice well
    SMALL = 1 << 13  # payloads up to this are copied
    SPLICE = 1 << 20  # bytes of a spliced frame
    STALL_MS = 20
    EVENTS = 32
    NEARLY_FULL = 15 << 12  # bytes in a pipe of the default size, where the next write may have to wait

cdef struct Source:
    bint exists, pipe, file, blocks, splices, ready, hung_up, ended, was_full
    int fd
    int64_t limit  # bytes that may still come of it; -1: any number
    uint64_t count
    size_t credit

cdef struct Target:
    bint exists, pipe, ready, dropped, ended, over, was_full
    int fd
    size_t piece, held, room, window
    uint64_t count
    char *hold  # what could not be written, from `start` to `end`
    size_t start, end

cdef struct Event:
    int kind, stream
    int64_t value


cdef class Exchange:
    """Moves the streams of a channel between the socket `sock`, which does not block, and their descriptors.

    `wake`, a descriptor of this exchange's alone, becomes readable when `run` is to return, or when Python has a signal
    to handle (`signal.set_wakeup_fd`).
    """

    cdef int sock, wake
    cdef bint splices, readable, writable, closed, deaf
    cdef Source[STREAMS] sources
    cdef Target[STREAMS] targets
    cdef Event[EVENTS] events
    cdef int first, last
    cdef int turn  # the source whose turn it is
    cdef char *out  # frames that are not data
    cdef size_t out_start, out_end, out_capacity
    cdef char *block  # a header, and copied payload
    cdef size_t block_start, block_end
    cdef int moving, moving_fd  # the stream whose payload is spliced next, from where, and what is left of it
    cdef size_t moving_left
    cdef bint stopped  # it was stopped meanwhile, which is reported once its descriptor is used no more
    cdef char *inward  # what was received and not dealt with
    cdef size_t in_start, in_end
    cdef int kind, stream  # of the frame whose payload comes next
    cdef int64_t left
    cdef bint message_is_whole
    cdef int blocked  # the stream whose target is waited for, and since when
    cdef int64_t blocked_since

    def __cinit__(self, int sock, int wake, bint splices):
        self.sock, self.wake, self.splices = sock, wake, splices
        self.readable = self.writable = True
        self.left = self.blocked = NONE
        self.block = <char *>malloc(PACKET + RECEIVE)  # so large that free() gives it back to the system
        if self.block == NULL:
            raise MemoryError
        self.inward = self.block + PACKET

    def __dealloc__(self):
        cdef int stream
        for stream in range(STREAMS):
            free(self.targets[stream].hold)
        free(self.out)
        free(self.block)

    @property
    def unsent(self) -> int:
        """Bytes of frames that the socket has yet to take, payload included."""
        return self.out_end - self.out_start + self.block_end - self.block_start + self.moving_left

    def sent(self, int stream) -> int:
        """Bytes of an outgoing stream so far."""
        return self.sources[stream].count

    def received(self, int stream) -> int:
        """Bytes of an incoming stream that were delivered so far, or dropped."""
        return self.targets[stream].count - self.targets[stream].held

    def has_ended(self, int stream) -> bool:
        """Whether the other end has said the end of an incoming stream."""
        return self.targets[stream].ended

    def add_source(self, int stream, int fd, int kind) -> None:
        """Send what `fd`, which is a `kind`, gives as `stream`."""
        cdef Source *source = &self.sources[stream]
        source.exists, source.fd, source.limit, source.credit = True, fd, NONE, WINDOW
        source.pipe, source.file = kind & ~OWN == PIPE, kind & ~OWN == FILE
        source.blocks = not kind & OWN
        source.splices = self.splices
        source.ready = source.file

    def add_target(self, int stream, int fd, size_t piece) -> None:
        """Write what comes of `stream` to `fd`, at most `piece` bytes at once after a poll; 0: it does not block."""
        cdef Target *target = &self.targets[stream]
        cdef status found
        target.exists, target.fd, target.piece = True, fd, piece
        target.room = target.window = WINDOW
        target.pipe = self.splices and fstat(fd, &found) == 0 and S_ISFIFO(found.st_mode)

    def send(self, bytes frames) -> None:
        """Send whole frames, of messages for instance, as soon as the socket takes them. Raises `MemoryError`."""
        cdef const char *data = frames
        if not self.put(data, len(frames)):
            raise MemoryError

    def end(self, int stream) -> None:
        """End an outgoing stream with what was sent of it."""
        self.end_source(stream)

    def finish(self, int stream) -> None:
        """End an outgoing stream with what its descriptor, a pipe, holds now; later bytes are not waited for."""
        cdef Source *source = &self.sources[stream]
        cdef int held = 0
        if source.ended:
            return
        ioctl(source.fd, FIONREAD, &held)
        source.limit = held
        source.ready = True

    def drop(self, int stream) -> None:
        """Read an incoming stream no more: the sender is asked to stop, and what still comes goes nowhere."""
        self.drop_target(stream)

    def calm(self) -> None:
        """Report a full pipe again: those that were are of the usual size now."""
        cdef int stream
        for stream in range(STREAMS):
            self.sources[stream].was_full = self.targets[stream].was_full = False

    def run(self, int timeout) -> tuple[int, int, object]:
        """Move bytes until something has happened, or for `timeout` milliseconds of silence (-1: no limit).

        What it returns: see exchange.py. Python's signal handlers run in between, and may raise.
        """
        cdef Event event
        while self.first == self.last and not self.message_is_whole:
            with nogil:
                self.work(timeout)
            PyErr_CheckSignals()
        if self.first != self.last:
            event = self.events[self.first]
            self.first = (self.first + 1) % EVENTS
            if event.kind == BROKEN:  # the code, type and stream are in one number
                code = (event.stream >> 16, event.stream >> 8 & 0xFF, event.stream & 0xFF, event.value)
                return BROKEN, 0, code
            return event.kind, event.stream, event.value
        payload = self.inward[self.in_start:self.in_start + self.left]
        self.in_start += self.left
        self.left = NONE
        self.message_is_whole = False
        return MESSAGE, self.kind, payload

    cdef void work(self, int timeout) noexcept nogil:
        cdef int call
        cdef bint moved
        for call in range(CALLS):
            moved = self.pass_on()
            moved |= self.receive()
            moved |= self.transmit()
            if self.first != self.last or self.message_is_whole:
                return
            if not moved:
                self.wait(timeout)
                return

    cdef void report(self, int kind, int stream, int64_t value) noexcept nogil:
        self.events[self.last] = [kind, stream, value]
        self.last = (self.last + 1) % EVENTS

    cdef bint close(self, int number) noexcept nogil:
        self.closed = True
        self.report(CLOSED, 0, number)
        return True

    cdef bint complain(self, int code, int64_t number) noexcept nogil:
        self.closed = True
        self.report(BROKEN, code << 16 | self.kind << 8 | self.stream, number)
        return True

    # From the socket

    cdef bint receive(self) noexcept nogil:
        """Deal with what the socket has; whether there was anything."""
        cdef size_t here = self.in_end - self.in_start
        if self.closed or self.message_is_whole:
            return False
        if self.left == NONE:
            if here < HEADER:
                return self.fill(HEADER - here)
            return self.begin()
        if self.kind == DATA:
            return self.receive_data(here)
        if here < <size_t>self.left:
            return self.fill(self.left - here)
        if self.kind >= MESSAGES:
            self.message_is_whole = True
            return True
        return self.finish_frame()

    cdef bint fill(self, size_t missing) noexcept nogil:
        """Receive; no more than is missing where the rest is to be spliced."""
        cdef ssize_t n
        if not self.readable:
            return False
        if self.in_start:
            memmove(self.inward, self.inward + self.in_start, self.in_end - self.in_start)
            self.in_end -= self.in_start
            self.in_start = 0
        if not self.splices:
            missing = RECEIVE - self.in_end
        n = recv(self.sock, self.inward + self.in_end, min(missing, RECEIVE - self.in_end), MSG_DONTWAIT)
        if n > 0:
            self.in_end += n
            return True
        return self.received_nothing(n)

    cdef bint received_nothing(self, ssize_t n) noexcept nogil:
        if n == 0:
            return self.close(0 if self.left == NONE and self.in_start == self.in_end else ECONNRESET)
        if errno == EAGAIN:
            self.readable = False
            return False
        return True if errno == EINTR else self.close(errno)

    cdef bint begin(self) noexcept nogil:
        cdef unsigned char *head = <unsigned char *>self.inward + self.in_start
        cdef Target *target
        cdef size_t length = _number(head + 4, 4)
        self.kind, self.stream = head[0], head[1]
        self.in_start += HEADER
        if head[2] or head[3] or STOP < self.kind < MESSAGES:
            return self.complain(PADDING, length)
        if self.kind >= MESSAGES:
            if self.stream:
                return self.complain(STREAM, length)
            if length > MAX_MESSAGE:
                return self.complain(TOO_LONG, length)
        elif self.kind == DATA or self.kind == END:
            if self.stream >= STREAMS or not self.targets[self.stream].exists:
                return self.complain(STREAM, length)
            target = &self.targets[self.stream]
            if target.ended:
                return self.complain(AFTER_END, length)
            if length == 0 if self.kind == DATA else length != 8:
                return self.complain(LENGTH, length)
            if self.kind == DATA:
                if length > target.room:
                    return self.complain(OVERRUN, length - target.room)
                target.room -= length
                target.held += length
                target.count += length
        else:
            if self.stream >= STREAMS or not self.sources[self.stream].exists:
                return self.complain(STREAM, length)
            if length != (4 if self.kind == CREDIT else 0):
                return self.complain(LENGTH, length)
        self.left = length
        return True

    cdef bint finish_frame(self) noexcept nogil:
        """The payload of an END, CREDIT or STOP is here."""
        cdef uint64_t number = _number(<unsigned char *>self.inward + self.in_start, self.left)
        cdef Source *source = &self.sources[self.stream]
        self.in_start += self.left
        self.left = NONE
        if self.kind == END:
            if number != self.targets[self.stream].count:
                return self.complain(COUNT, number)
            self.targets[self.stream].ended = True
            self.report_end(self.stream)
        elif self.kind == CREDIT:
            if number > WINDOW_MAX - source.credit:
                return self.complain(EXCESS, number)
            source.credit += number
        elif not source.ended:
            self.end_source(self.stream)
            if self.moving_left and self.moving == self.stream:
                self.stopped = True
            else:
                self.report(STOPPED, self.stream, 0)
        return True

    cdef bint receive_data(self, size_t here) noexcept nogil:
        cdef Target *target = &self.targets[self.stream]
        cdef size_t n = min(here, <size_t>self.left)
        if n == 0:
            if target.pipe and not target.end and target.fd >= 0 and self.left > SMALL:
                return self.splice_in(target)
            # The next header may come with it; a payload that is to be spliced must not.
            return self.fill(min(<size_t>self.left + HEADER, RECEIVE))
        if not self.deliver(target, self.inward + self.in_start, n):
            return self.close(ENOMEM)
        self.in_start += n
        self.left -= n
        if self.left == 0:
            self.left = NONE
        return True

    cdef bint splice_in(self, Target *target) noexcept nogil:
        """From the socket to the target, in the kernel. After a stall this returns to copies, which can be held."""
        cdef ssize_t n
        cdef pollfd[2] ends
        if not self.readable:
            return False
        if self.blocked != NONE:
            if not target.ready and _now() - self.blocked_since < STALL_MS:
                return False
            self.blocked = NONE
            if not target.ready:
                return self.fill(min(<size_t>self.left, RECEIVE))
        n = splice(self.sock, NULL, target.fd, NULL, self.left, SPLICE_F_MOVE | SPLICE_F_NONBLOCK)
        if n > 0:
            self.left -= n
            if self.left == 0:
                self.left = NONE
            self.delivered(target, n)
            return True
        if n == 0 or errno == ECONNRESET:
            return self.received_nothing(n)
        if errno == EPIPE:
            self.lose(self.stream, EPIPE)
            return True
        if errno in (EINVAL, ENOSYS, EPERM, EOPNOTSUPP):
            target.pipe = False
            return True
        if errno != EAGAIN:
            return True if errno == EINTR else self.close(errno)
        ends[0] = [self.sock, POLLIN, 0]
        ends[1] = [target.fd, POLLOUT, 0]
        poll(ends, 2, 0)
        self.readable = ends[0].revents != 0
        target.ready = ends[1].revents != 0
        if self.readable and not target.ready:
            self.blocked, self.blocked_since = self.stream, _now()
            self.report_full(target)
        return self.readable and target.ready

    # To the targets

    cdef bint deliver(self, Target *target, const char *data, size_t size) noexcept nogil:
        """Write to the target, and hold what it does not take; False where there is no memory for that."""
        cdef size_t n = 0
        if target.fd >= 0 and not target.end:
            n = self.put_out(target, data, size)
        if target.fd < 0:
            self.delivered(target, size - n)
            return True
        if n == size:
            return True
        self.report_full(target)
        return _hold(target, data + n, size - n)

    cdef void report_full(self, Target *target) noexcept nogil:
        if target.fd >= 0 and not target.was_full:
            target.was_full = True
            self.report(FULL, self.number_of(target), target.fd)

    cdef size_t put_out(self, Target *target, const char *data, size_t size) noexcept nogil:
        """The bytes that the target took; all are dropped where it is lost."""
        cdef ssize_t n
        cdef pollfd one
        if target.piece:
            one = [target.fd, POLLOUT, 0]
            if poll(&one, 1, 0) <= 0:
                target.ready = False
                return 0
            size = min(size, target.piece)
        n = write(target.fd, data, size)
        if n >= 0:
            self.delivered(target, n)
            return n
        if errno == EAGAIN:
            target.ready = False
        elif errno != EINTR:
            self.lose(self.number_of(target), errno)
        return 0

    cdef int number_of(self, Target *target) noexcept nogil:
        return <int>(target - &self.targets[0])

    cdef bint pass_on(self) noexcept nogil:
        """Write what is held for targets that have room."""
        cdef int stream
        cdef Target *target
        cdef size_t n
        cdef bint moved = False
        for stream in range(STREAMS):
            target = &self.targets[stream]
            if target.end and target.ready:
                moved = True
                n = self.put_out(target, target.hold + target.start, target.end - target.start)
                if target.fd < 0:
                    continue
                target.start += n
                if target.start == target.end:
                    _free_hold(target)
                    self.report_end(stream)
        return moved

    cdef void delivered(self, Target *target, size_t n) noexcept nogil:
        """Give back the credit of what was delivered or dropped: `frames.Incoming.deliver`."""
        cdef size_t grant
        target.held -= n
        if target.ended:
            return
        grant = target.window - target.room - target.held
        if grant < target.window // 2:
            return
        if not target.held and target.window < WINDOW_MAX:
            grant += target.window
            target.window *= 2
        target.room += grant
        self.put_number(CREDIT, self.number_of(target), 4, grant)

    cdef void report_end(self, int stream) noexcept nogil:
        cdef Target *target = &self.targets[stream]
        if target.ended and not (target.end or target.over):
            target.over = True
            target.fd = -1  # its owner may close it now, and the number may become another's
            self.report(DELIVERED, stream, target.count)

    cdef void lose(self, int stream, int number) noexcept nogil:
        self.report(TARGET_LOST, stream, number)
        self.drop_target(stream)

    cdef void drop_target(self, int stream) noexcept nogil:
        cdef Target *target = &self.targets[stream]
        cdef size_t held = target.end - target.start
        if target.dropped:
            return
        target.fd, target.dropped = -1, True
        _free_hold(target)
        if self.blocked == stream:
            self.blocked = NONE
        self.delivered(target, held)
        if not target.ended:
            self.put_number(STOP, stream, 0, 0)
        self.report_end(stream)

    # From the sources

    cdef bint transmit(self) noexcept nogil:
        """Send what there is; whether anything moved."""
        cdef bint moved = False
        if self.deaf or self.closed:
            return False
        if self.block_start == self.block_end and not self.moving_left and self.out_start == self.out_end:
            moved = self.begin_data()
        if not self.writable:
            return moved
        if self.block_start < self.block_end:
            return self.send_some(self.block, &self.block_start, self.block_end, MSG_MORE if self.moving_left else 0)
        if self.moving_left:
            return self.splice_out()
        if self.out_start < self.out_end:
            return self.send_some(self.out, &self.out_start, self.out_end, 0)
        return moved

    cdef bint send_some(self, char *data, size_t *start, size_t end, int flags) noexcept nogil:
        cdef ssize_t n = send(self.sock, data + start[0], end - start[0], MSG_DONTWAIT | MSG_NOSIGNAL | flags)
        if n < 0:
            return self.sent_nothing()
        start[0] += n
        return True

    cdef bint sent_nothing(self) noexcept nogil:
        if errno == EAGAIN:
            self.writable = False
            return False
        if errno == EINTR:
            return True
        if errno not in (EPIPE, ECONNRESET):
            return self.close(errno)
        # What was sent to us before is still to be read; its end says the rest.
        self.deaf = True
        self.block_start = self.block_end = self.out_start = self.out_end = self.moving_left = 0
        return True

    cdef bint begin_data(self) noexcept nogil:
        """Begin a DATA frame of the next source that has something and may send it."""
        cdef int turn, stream
        for turn in range(STREAMS):
            stream = (self.turn + turn) % STREAMS
            if self.sources[stream].exists and not self.sources[stream].ended and self.read_source(stream):
                self.turn = stream + 1
                return True
        return False

    cdef bint read_source(self, int stream) noexcept nogil:
        cdef Source *source = &self.sources[stream]
        cdef size_t size = min(source.credit, <size_t>SPLICE)
        cdef size_t there
        if source.limit == 0:
            return self.finish_source(stream)
        if not (source.ready and source.credit):
            return False
        if source.limit > 0:
            size = min(size, <size_t>source.limit)
        if source.pipe or source.file:
            there = _left_in_file(source.fd) if source.file else _left_in_pipe(source.fd)
            if there == 0 and source.pipe:
                if source.hung_up:
                    return self.finish_source(stream)
                source.ready = False
                return False
            if there >= NEARLY_FULL and source.pipe and not source.was_full:
                source.was_full = True
                self.report(FULL, stream, source.fd)
            if there:
                size = min(size, there)
                if source.splices and size > SMALL:
                    return self.begin_frame(stream, size, 0)
        return self.copy_source(stream, size)

    cdef bint copy_source(self, int stream, size_t size) noexcept nogil:
        cdef Source *source = &self.sources[stream]
        cdef ssize_t n = read(source.fd, self.block + HEADER, min(size, <size_t>(PACKET - HEADER)))
        if n > 0:
            if source.blocks and not (source.pipe or source.file):
                source.ready = False
            return self.begin_frame(stream, n, n)
        if n == 0:
            return self.finish_source(stream)
        if errno == EAGAIN:
            source.ready = False
            return False
        if errno != EINTR:
            source.ended = True
            self.report(SOURCE_ENDED, stream, errno)
        return True

    cdef bint begin_frame(self, int stream, size_t size, size_t copied) noexcept nogil:
        cdef Source *source = &self.sources[stream]
        _put_header(self.block, DATA, stream, size)
        self.block_start, self.block_end = 0, HEADER + copied
        if not copied:
            self.moving, self.moving_fd, self.moving_left = stream, source.fd, size
        source.credit -= size
        source.count += size
        if source.limit > 0:
            source.limit -= size
        return True

    cdef bint splice_out(self) noexcept nogil:
        cdef Source *source = &self.sources[self.moving]
        cdef ssize_t n
        if source.file:
            n = sendfile(self.sock, self.moving_fd, NULL, self.moving_left)
        else:
            n = splice(self.moving_fd, NULL, self.sock, NULL, self.moving_left, SPLICE_F_MOVE | SPLICE_F_NONBLOCK)
        if n > 0:
            self.moved_out(n)
            return True
        if n < 0 and errno != EAGAIN and errno not in (EINVAL, ENOSYS, EPERM, EOPNOTSUPP):
            return self.sent_nothing()
        if n < 0 and errno == EAGAIN and (source.file or _left_in_pipe(self.moving_fd)):
            self.writable = False
            return False
        if n < 0 and errno != EAGAIN:
            return self.copy_out(source)
        # What the header promises is not there any more: another process has read it, or cut the file.
        source.ended = self.closed = True
        self.report(SOURCE_ENDED, self.moving, EIO)
        return True

    cdef bint copy_out(self, Source *source) noexcept nogil:
        """This source does not splice: the rest of the frame is copied, and what follows too."""
        cdef ssize_t n = read(self.moving_fd, self.block, min(self.moving_left, <size_t>PACKET))
        source.splices = False
        if n <= 0:
            source.ended = self.closed = True
            self.report(SOURCE_ENDED, self.moving, errno if n < 0 else EIO)
            return True
        self.block_start, self.block_end = 0, n
        self.moved_out(n)
        return True

    cdef void moved_out(self, size_t n) noexcept nogil:
        self.moving_left -= n
        if self.stopped and not self.moving_left:
            self.stopped = False
            self.report(STOPPED, self.moving, 0)

    cdef bint finish_source(self, int stream) noexcept nogil:
        self.end_source(stream)
        self.report(SOURCE_ENDED, stream, 0)
        return True

    cdef void end_source(self, int stream) noexcept nogil:
        cdef Source *source = &self.sources[stream]
        if not source.ended or source.fd >= 0:
            source.ended = True
            source.fd = -1
            self.put_number(END, stream, 8, source.count)

    # Frames that are not data

    cdef void put_number(self, int kind, int stream, int size, uint64_t number) noexcept nogil:
        cdef char[HEADER + 8] frame
        cdef int at
        _put_header(frame, kind, stream, size)
        for at in range(size):
            frame[HEADER + at] = <char>(number >> (8 * (size - 1 - at)))
        if not self.put(frame, HEADER + size):
            self.close(ENOMEM)

    cdef bint put(self, const char *data, size_t size) noexcept nogil:
        cdef char *room
        if self.deaf:
            return True
        if self.out_start == self.out_end:
            self.out_start = self.out_end = 0
        if self.out_end + size > self.out_capacity:
            room = <char *>realloc(self.out, self.out_end + size + 256)
            if room == NULL:
                return False
            self.out, self.out_capacity = room, self.out_end + size + 256
        memcpy(self.out + self.out_end, data, size)
        self.out_end += size
        return True

    # Waiting

    cdef void wait(self, int timeout) noexcept nogil:
        """Until something can be done, or for `timeout` milliseconds."""
        cdef pollfd[2 + 2 * STREAMS] ends
        cdef char[64] drained
        cdef int stream, found
        cdef short events = 0
        cdef bint blocked = self.blocked != NONE
        if not (self.closed or blocked):
            events = POLLIN
        if not (self.closed or self.deaf or self.writable):
            events |= POLLOUT
        ends[0] = [self.wake, POLLIN, 0]
        ends[1] = [self.sock if events else -1, events, 0]
        for stream in range(STREAMS):
            ends[2 + stream] = [self.source_to_watch(stream), POLLIN, 0]
            ends[2 + STREAMS + stream] = self.target_to_watch(stream)
        if blocked and (timeout < 0 or timeout > STALL_MS):
            timeout = STALL_MS
        found = poll(ends, 2 + 2 * STREAMS, timeout)
        if found == 0 and not blocked:
            self.report(TIMEOUT, 0, 0)
        if found <= 0:
            return
        if ends[0].revents:
            read(self.wake, drained, sizeof(drained))
            self.report(WOKEN, 0, 0)
        if ends[1].revents & ~POLLOUT:
            self.readable = True
        if ends[1].revents & ~POLLIN:
            self.writable = True
        for stream in range(STREAMS):
            self.note(stream, ends[2 + stream].revents, ends[2 + STREAMS + stream].revents)

    cdef int source_to_watch(self, int stream) noexcept nogil:
        cdef Source *source = &self.sources[stream]
        return source.fd if source.exists and source.credit and not (source.ended or source.ready) else -1

    cdef pollfd target_to_watch(self, int stream) noexcept nogil:
        cdef Target *target = &self.targets[stream]
        cdef bint waits = target.end or self.blocked == stream
        return [target.fd if target.exists else -1, POLLOUT if waits else 0, 0]

    cdef void note(self, int stream, short source, short target) noexcept nogil:
        """What poll(2) found of a stream's descriptors."""
        if source:
            self.sources[stream].ready = True
            self.sources[stream].hung_up = (source & ~POLLIN) != 0  # POLLNVAL too: somebody has closed it
        if target & POLLOUT:
            self.targets[stream].ready = True
        elif target & (POLLERR | POLLHUP):
            self.lose(stream, EPIPE)


cdef uint64_t _number(const unsigned char *data, int size) noexcept nogil:
    """A big-endian number."""
    cdef uint64_t number = 0
    cdef int at
    for at in range(size):
        number = number << 8 | data[at]
    return number


cdef void _put_header(char *data, int kind, int stream, size_t length) noexcept nogil:
    data[0], data[1], data[2], data[3] = <char>kind, <char>stream, 0, 0
    data[4], data[5], data[6], data[7] = (
        <char>(length >> 24), <char>(length >> 16), <char>(length >> 8), <char>length
    )


cdef bint _hold(Target *target, const char *data, size_t size) noexcept nogil:
    """Keep bytes for later; as many at most as their sender had credit for."""
    if target.hold == NULL:
        target.hold = <char *>malloc(WINDOW_MAX)  # a page of it is taken when it is written to
        if target.hold == NULL:
            return False
    if target.end + size > WINDOW_MAX:
        memmove(target.hold, target.hold + target.start, target.end - target.start)
        target.end -= target.start
        target.start = 0
    memcpy(target.hold + target.end, data, size)
    target.end += size
    return True


cdef void _free_hold(Target *target) noexcept nogil:
    free(target.hold)
    target.hold = NULL
    target.start = target.end = 0


cdef size_t _left_in_pipe(int fd) noexcept nogil:
    cdef int there = 0
    ioctl(fd, FIONREAD, &there)
    return there


cdef size_t _left_in_file(int fd) noexcept nogil:
    """Bytes from a file's offset to its end; 0 also for one that does not know its size, as in /proc."""
    cdef status found
    cdef off_t at = lseek(fd, 0, SEEK_CUR)
    return found.st_size - at if at >= 0 and fstat(fd, &found) == 0 and found.st_size > at else 0


cdef int64_t _now() noexcept nogil:
    """Milliseconds."""
    cdef moment now
    clock_gettime(CLOCK_MONOTONIC, &now)
    return <int64_t>now.tv_sec * 1000 + now.tv_nsec // 1000000
