/* LD_PRELOAD: system calls with short results and errors, as test_short_results.py asks for them.
 *
 * SHIM_SEED=n      from the first connect() on, calls that move bytes are shortened at random, or fail with EINTR or
 *                  EAGAIN, where the kernel might do the same. Random, but the same at each run of one thread; and
 *                  each of the three happens to the first call of a name that it may happen to.
 * SHIM_FAIL=r,...  r is name=errno@n: from call n on (1 is the first) the call fails with that errno.
 *                  F_SETPIPE_SZ, F_GETPIPE_SZ and SO_SNDBUFFORCE count as calls of their own, and so does poll_one, a
 *                  look at one descriptor: what a pump waits with is poll, which has two or three.
 * SHIM_COUNTS=file the process maps this file and counts there what it did, by name: see COUNTS below.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/sendfile.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <unistd.h>

enum call { SPLICE, SENDFILE, READ, READV, WRITE, POLL, POLL_ONE, RECV, SETPIPE, GETPIPE, SNDBUFFORCE, PIPE2, SOCKETPAIR, THREAD, CALLS };
enum count { CALLED, SHORTENED, INTERRUPTED, AGAIN, FAILED, COUNTS }; /* as in test_short_results.py */

static const char *const names[CALLS] = {
    "splice", "sendfile",     "read",         "readv",          "write", "poll",          "poll_one",
    "recv",   "F_SETPIPE_SZ", "F_GETPIPE_SZ", "SO_SNDBUFFORCE", "pipe2", "socketpair", "pthread_create",
};
static _Atomic uint64_t own[CALLS][COUNTS];
static _Atomic uint64_t (*counts)[COUNTS] = own;
static struct { int error; uint64_t from; } failing[CALLS];
static _Atomic int connected;
static uint64_t seed;

static void __attribute__((constructor)) start(void)
{
    const char *path = getenv("SHIM_COUNTS"), *rule = getenv("SHIM_FAIL"), *given = getenv("SHIM_SEED");
    int fd = path ? open(path, O_RDWR | O_CLOEXEC) : -1;
    if (fd >= 0) {
        void *map = mmap(NULL, sizeof own, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
        if (map != MAP_FAILED)
            counts = map;
        close(fd);
    }
    seed = given ? strtoull(given, NULL, 10) : 0;
    while (rule && *rule) {
        const char *is = strchr(rule, '='), *at = is ? strchr(is, '@') : NULL;
        if (!at)
            abort();
        for (int call = 0; call < CALLS; call++)
            if (strlen(names[call]) == (size_t)(is - rule) && !strncmp(names[call], rule, is - rule)) {
                failing[call].error = atoi(is + 1);
                failing[call].from = strtoull(at + 1, NULL, 10);
            }
        rule = strchr(at, ',');
        rule += rule != NULL;
    }
}

static uint64_t next(void) /* splitmix64 */
{
    static _Thread_local uint64_t state;
    uint64_t z = (state += 0x9e3779b97f4a7c15) + seed * 0xd1342543de82ef95;
    z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9;
    z = (z ^ z >> 27) * 0x94d049bb133111eb;
    return z ^ z >> 31;
}

static int fails(enum call call)
{
    uint64_t number = ++counts[call][CALLED];
    if (!failing[call].error || number < failing[call].from)
        return 0;
    counts[call][FAILED]++;
    errno = failing[call].error;
    return 1;
}

/* Whether a call on `fd` fails in passing. Regular files never do: what Python imports must arrive. */
static int disturbed(enum call call, int fd, int may_be_short_of)
{
    struct stat what;
    if (!seed || !connected || (fd >= 0 && !fstat(fd, &what) && S_ISREG(what.st_mode)))
        return 0;
    uint64_t random = next() % 8;
    if (random == 0 || !counts[call][INTERRUPTED]) {
        counts[call][INTERRUPTED]++;
        errno = EINTR;
        return 1;
    }
    if (may_be_short_of && (random == 1 || !counts[call][AGAIN])) {
        counts[call][AGAIN]++;
        errno = EAGAIN;
        return 1;
    }
    return 0;
}

static size_t shorter(enum call call, int fd, size_t size)
{
    struct stat what;
    if (!seed || !connected || size < 2 || (!fstat(fd, &what) && S_ISREG(what.st_mode) && call != SENDFILE))
        return size;
    uint64_t random = next();
    if (random % 4 == 0 && counts[call][SHORTENED])
        return size;
    counts[call][SHORTENED]++;
    /* Up to a page or up to all of it: both are sizes that make trouble. */
    return 1 + (random >> 8) % (random % 4 == 1 && size > 4096 ? 4096 : size - 1);
}

#define REAL(name) ((typeof(name) *)dlsym(RTLD_NEXT, #name))

ssize_t splice(int in, off64_t *in_at, int out, off64_t *out_at, size_t size, unsigned flags)
{
    if (fails(SPLICE) || disturbed(SPLICE, in, 1))
        return -1;
    return REAL(splice)(in, in_at, out, out_at, shorter(SPLICE, in, size), flags);
}

ssize_t sendfile64(int out, int in, off64_t *at, size_t size)
{
    if (fails(SENDFILE) || disturbed(SENDFILE, out, 1))
        return -1;
    return REAL(sendfile64)(out, in, at, shorter(SENDFILE, in, size));
}

ssize_t sendfile(int out, int in, off_t *at, size_t size)
{
    return sendfile64(out, in, at, size);
}

ssize_t read(int fd, void *into, size_t size)
{
    if (fails(READ) || disturbed(READ, fd, 0))
        return -1;
    return REAL(read)(fd, into, shorter(READ, fd, size));
}

ssize_t readv(int fd, const struct iovec *parts, int number)
{
    if (fails(READV) || disturbed(READV, fd, 1))
        return -1;
    if (number != 1)
        return REAL(readv)(fd, parts, number);
    struct iovec part = {parts->iov_base, shorter(READV, fd, parts->iov_len)};
    return REAL(readv)(fd, &part, 1);
}

ssize_t write(int fd, const void *from, size_t size)
{
    /* One byte is what wakes the pumps: the pipe for that is never full. Standard error is the user's. */
    if (fd == 2 || size == 1)
        return REAL(write)(fd, from, size);
    if (fails(WRITE) || disturbed(WRITE, fd, 1))
        return -1;
    return REAL(write)(fd, from, shorter(WRITE, fd, size));
}

int poll(struct pollfd *ends, nfds_t number, int timeout)
{
    enum call call = number > 1 ? POLL : POLL_ONE;
    if (fails(call) || disturbed(call, -1, 0))
        return -1;
    return REAL(poll)(ends, number, timeout);
}

ssize_t recv(int fd, void *into, size_t size, int flags)
{
    /* Only a look ahead may find nothing: what it has seen is there. */
    if (fails(RECV) || disturbed(RECV, fd, flags & MSG_PEEK))
        return -1;
    return REAL(recv)(fd, into, shorter(RECV, fd, size), flags);
}

int connect(int fd, const struct sockaddr *address, socklen_t size)
{
    connected = 1;
    return REAL(connect)(fd, address, size);
}

int setsockopt(int fd, int level, int name, const void *value, socklen_t size)
{
    if (level == SOL_SOCKET && name == SO_SNDBUFFORCE && fails(SNDBUFFORCE))
        return -1;
    return REAL(setsockopt)(fd, level, name, value, size);
}

int fcntl64(int fd, int command, ...)
{
    va_list arguments;
    va_start(arguments, command);
    void *argument = va_arg(arguments, void *);
    va_end(arguments);
    if ((command == F_SETPIPE_SZ && fails(SETPIPE)) || (command == F_GETPIPE_SZ && fails(GETPIPE)))
        return -1;
    return REAL(fcntl64)(fd, command, argument);
}

int fcntl(int fd, int command, ...)
{
    va_list arguments;
    va_start(arguments, command);
    void *argument = va_arg(arguments, void *);
    va_end(arguments);
    return fcntl64(fd, command, argument);
}

int socketpair(int domain, int type, int protocol, int ends[2])
{
    return connected && fails(SOCKETPAIR) ? -1 : REAL(socketpair)(domain, type, protocol, ends);
}

int pipe2(int ends[2], int flags)
{
    return connected && fails(PIPE2) ? -1 : REAL(pipe2)(ends, flags);
}

int pthread_create(pthread_t *thread, const pthread_attr_t *how, void *(*what)(void *), void *argument)
{
    if (fails(THREAD))
        return errno;
    return REAL(pthread_create)(thread, how, what, argument);
}
