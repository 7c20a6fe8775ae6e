/*
 * agent: the guest's services, for tests.
 *
 * A service gets one connected socket and serves it once; when it returns the process exits, and that is the full
 * close. So the same services run in two places:
 *
 *   agent SERVICE [ARGS]                      serves fd 0, which is the connection (our emulator's `--exec PORT=...`)
 *   agent --vsock PORT SERVICE [ARGS] ...     listens on AF_VSOCK ports, one child a connection (a real guest)
 *
 * The service `command` reads one line and runs the service that the line names, so that one port is enough for a
 * test to choose the guest's behaviour. The table `services` at the end lists them all.
 *
 * Payload is a pattern that a reader can check at any offset: byte i is (i ^ i >> 8 ^ i >> 16) & 0xff.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <poll.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

#include <linux/vm_sockets.h>

#define PIECE 65536
#define SLOW_PIECE 4096
#define MAX_WORDS 8
#define MAX_PORTS 32

struct service {
    const char *name;
    int args; /* at least so many */
    const char *usage;
    int (*serve)(int fd, char **args);
};

static int dispatch(int fd, char **words);

static unsigned char piece[PIECE];

/* ---- bytes ---- */

static uint64_t number(const char *text)
{
    return strtoull(text, NULL, 10);
}

static void pause_ms(uint64_t ms)
{
    struct timespec left = {.tv_sec = (time_t)(ms / 1000), .tv_nsec = (long)(ms % 1000) * 1000000};
    while (nanosleep(&left, &left) < 0 && errno == EINTR)
        ;
}

static int write_all(int fd, const void *bytes, size_t size)
{
    const char *at = bytes;
    while (size > 0) {
        ssize_t done = write(fd, at, size);
        if (done < 0)
            return -1;
        at += done;
        size -= (size_t)done;
    }
    return 0;
}

static int write_pattern(int fd, uint64_t size)
{
    for (uint64_t offset = 0; offset < size;) {
        size_t now = size - offset < PIECE ? (size_t)(size - offset) : PIECE;
        for (size_t k = 0; k < now; k++) {
            uint64_t i = offset + k;
            piece[k] = (unsigned char)(i ^ i >> 8 ^ i >> 16);
        }
        if (write_all(fd, piece, now) < 0)
            return -1;
        offset += now;
    }
    return 0;
}

/* zlib's crc32, continued from `crc` (0 at the start). */
static uint32_t crc32(uint32_t crc, const unsigned char *bytes, size_t size)
{
    static uint32_t table[256];
    if (table[1] == 0)
        for (uint32_t n = 0; n < 256; n++) {
            uint32_t c = n;
            for (int bit = 0; bit < 8; bit++)
                c = c & 1 ? 0xEDB88320u ^ c >> 1 : c >> 1;
            table[n] = c;
        }
    crc = ~crc;
    while (size-- > 0)
        crc = table[(crc ^ *bytes++) & 0xff] ^ crc >> 8;
    return ~crc;
}

/* Reads `size` bytes, at most `step` a time with `delay_ms` after each; returns how many came before EOF. */
static uint64_t read_exactly(int fd, uint64_t size, size_t step, uint64_t delay_ms, uint32_t *crc)
{
    uint64_t count = 0;
    *crc = 0;
    while (count < size) {
        size_t want = size - count < step ? (size_t)(size - count) : step;
        ssize_t got = read(fd, piece, want);
        if (got <= 0)
            break;
        *crc = crc32(*crc, piece, (size_t)got);
        count += (uint64_t)got;
        if (delay_ms > 0)
            pause_ms(delay_ms);
    }
    return count;
}

static uint64_t read_until_eof(int fd)
{
    uint64_t count = 0;
    ssize_t got;
    while ((got = read(fd, piece, PIECE)) > 0)
        count += (uint64_t)got;
    return count;
}

static int answer_count(int fd, uint64_t count, uint32_t crc)
{
    char line[64];
    int size = snprintf(line, sizeof line, "%llu %08x\n", (unsigned long long)count, crc);
    return write_all(fd, line, (size_t)size);
}

/* ---- services ---- */

static int serve_echo(int fd, char **args)
{
    ssize_t got;
    (void)args;
    while ((got = read(fd, piece, PIECE)) > 0)
        if (write_all(fd, piece, (size_t)got) < 0)
            return 1;
    return 0;
}

/* The answer comes through only where EOF was a half-close that the other side's VMM passed on as one. */
static int serve_discard(int fd, char **args)
{
    char line[32];
    (void)args;
    int size = snprintf(line, sizeof line, "%llu\n", (unsigned long long)read_until_eof(fd));
    return write_all(fd, line, (size_t)size);
}

static int serve_chargen(int fd, char **args)
{
    (void)args;
    return write_pattern(fd, UINT64_MAX);
}

static int serve_source(int fd, char **args)
{
    return write_pattern(fd, number(args[0]));
}

static int serve_close(int fd, char **args)
{
    (void)fd;
    (void)args;
    return 0;
}

static int serve_sleep(int fd, char **args)
{
    pause_ms((uint64_t)(strtod(args[0], NULL) * 1000));
    return dispatch(fd, args + 1);
}

static int serve_hold(int fd, char **args)
{
    if (write_pattern(fd, number(args[0])) < 0)
        return 1;
    read_until_eof(fd);
    return 0;
}

static int serve_half(int fd, char **args)
{
    if (write_pattern(fd, number(args[0])) < 0 || shutdown(fd, SHUT_WR) < 0)
        return 1;
    read_until_eof(fd);
    return 0;
}

static int serve_sink(int fd, char **args)
{
    uint32_t crc;
    uint64_t count = read_exactly(fd, number(args[0]), PIECE, 0, &crc);
    return answer_count(fd, count, crc);
}

static int serve_slow(int fd, char **args)
{
    uint32_t crc;
    uint64_t count = read_exactly(fd, number(args[0]), SLOW_PIECE, number(args[1]), &crc);
    return answer_count(fd, count, crc);
}

static int serve_reply(int fd, char **args)
{
    uint32_t crc;
    uint64_t size = number(args[0]);
    if (read_exactly(fd, size, PIECE, 0, &crc) < size)
        return 1;
    return write_pattern(fd, number(args[1]));
}

static int serve_unread(int fd, char **args)
{
    (void)fd;
    pause_ms(number(args[0]));
    return 0;
}

/*
 * A connection from the guest to the host's port. Firecracker passes it on to the Unix socket `<uds_path>_PORT`;
 * under the emulator there is no vsock, and FASTVSOCK_HOST_SOCKET_PREFIX holds that path's prefix.
 */
static int connect_back(const char *port)
{
    const char *prefix = getenv("FASTVSOCK_HOST_SOCKET_PREFIX");
    struct sockaddr_un un = {.sun_family = AF_UNIX};
    struct sockaddr_vm vm = {.svm_family = AF_VSOCK, .svm_cid = VMADDR_CID_HOST, .svm_port = (unsigned)number(port)};
    struct sockaddr *address = prefix ? (struct sockaddr *)&un : (struct sockaddr *)&vm;
    socklen_t size = prefix ? sizeof un : sizeof vm;

    if (prefix && snprintf(un.sun_path, sizeof un.sun_path, "%s_%s", prefix, port) >= (int)sizeof un.sun_path) {
        errno = ENAMETOOLONG;
        return -1;
    }
    int fd = socket(address->sa_family, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (fd >= 0 && connect(fd, address, size) < 0) {
        int error = errno;
        close(fd);
        errno = error;
        return -1;
    }
    return fd;
}

static int serve_back(int fd, char **args)
{
    char line[128];
    int host = connect_back(args[0]);
    int failed = host < 0 || write_pattern(host, number(args[1])) < 0;
    int size = snprintf(line, sizeof line, "back %s\n", failed ? strerror(errno) : "ok");
    if (host >= 0)
        close(host);
    return write_all(fd, line, (size_t)size);
}

/* Byte by byte, so that what follows the line is left to the service that the line names. */
static int serve_command(int fd, char **args)
{
    char line[256];
    char *words[MAX_WORDS + 1] = {NULL};
    size_t size = 0;
    int count = 0;

    (void)args;
    for (;; size++) {
        if (size == sizeof line || read(fd, line + size, 1) != 1)
            return 1;
        if (line[size] == '\n')
            break;
    }
    line[size] = '\0';
    for (char *word = strtok(line, " "); word && count < MAX_WORDS; word = strtok(NULL, " "))
        words[count++] = word;
    return dispatch(fd, words);
}

static const struct service services[] = {
    {"echo", 0, "", serve_echo},                      /* sends back what comes, until EOF */
    {"discard", 0, "", serve_discard},                /* reads until EOF, then answers the count */
    {"chargen", 0, "", serve_chargen},                /* the pattern, until the peer closes */
    {"source", 1, "BYTES", serve_source},             /* so much of the pattern, then closes */
    {"close", 0, "", serve_close},                    /* closes at once */
    {"sleep", 2, "SECONDS SERVICE...", serve_sleep},  /* waits, then serves */
    {"hold", 1, "BYTES", serve_hold},                 /* the pattern, then stays open until EOF */
    {"half", 1, "BYTES", serve_half},                 /* the pattern, half-closes, reads until EOF */
    {"sink", 1, "BYTES", serve_sink},                 /* reads exactly so much, answers count and CRC-32 */
    {"slow", 2, "BYTES DELAY_MS", serve_slow},        /* as sink, 4096 bytes at a time with pauses */
    {"reply", 2, "BYTES BYTES", serve_reply},         /* reads exactly so much, then sends so much */
    {"unread", 1, "MS", serve_unread},                /* reads nothing for so long, then closes */
    {"back", 2, "PORT BYTES", serve_back},            /* sends the pattern to the host's port */
    {"command", 0, "", serve_command},                /* reads a line: which of the above to be */
};

static int dispatch(int fd, char **words)
{
    static const char unknown[] = "unknown service or missing argument\n";
    int count = 0;
    while (words[count])
        count++;
    for (size_t k = 0; count > 0 && k < sizeof services / sizeof *services; k++)
        if (strcmp(words[0], services[k].name) == 0 && count - 1 >= services[k].args)
            return services[k].serve(fd, words + 1) ? 1 : 0;
    write_all(fd, unknown, sizeof unknown - 1);
    return 2;
}

/* ---- the two ways to run ---- */

static int listen_on(const char *port)
{
    struct sockaddr_vm address = {
        .svm_family = AF_VSOCK, .svm_cid = VMADDR_CID_ANY, .svm_port = (unsigned)number(port)};
    int fd = socket(AF_VSOCK, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (fd < 0 || bind(fd, (struct sockaddr *)&address, sizeof address) < 0 || listen(fd, 1024) < 0) {
        fprintf(stderr, "agent: vsock port %s: %s\n", port, strerror(errno));
        exit(1);
    }
    return fd;
}

static void accept_one(const struct pollfd *listeners, int count, int which, char **words)
{
    int fd = accept(listeners[which].fd, NULL, NULL);
    if (fd >= 0 && fork() == 0) {
        for (int k = 0; k < count; k++)
            close(listeners[k].fd);
        _exit(dispatch(fd, words));
    }
    if (fd >= 0)
        close(fd);
}

static int listen_and_serve(char **argv)
{
    struct pollfd listeners[MAX_PORTS];
    char **words[MAX_PORTS];
    int count = 0;

    while (*argv && argv[1] && argv[2] && count < MAX_PORTS) {
        *argv = NULL; /* this `--vsock` ends the words of the service before it */
        listeners[count] = (struct pollfd){.fd = listen_on(argv[1]), .events = POLLIN};
        words[count++] = argv + 2;
        for (argv += 2; *argv && strcmp(*argv, "--vsock") != 0; argv++)
            ;
    }
    signal(SIGCHLD, SIG_IGN); /* the kernel reaps the children */
    for (;;) {
        if (poll(listeners, (nfds_t)count, -1) < 0)
            return 1;
        for (int k = 0; k < count; k++)
            if (listeners[k].revents)
                accept_one(listeners, count, k, words[k]);
    }
}

int main(int argc, char **argv)
{
    signal(SIGPIPE, SIG_IGN); /* a peer that closes ends the service by EPIPE, not the process */
    if (argc > 3 && strcmp(argv[1], "--vsock") == 0)
        return listen_and_serve(argv + 1);
    if (argc > 1 && argv[1][0] != '-')
        return dispatch(STDIN_FILENO, argv + 1);
    fprintf(stderr, "usage: agent SERVICE [ARGS] | agent --vsock PORT SERVICE [ARGS] [--vsock ...]\n");
    for (size_t k = 0; k < sizeof services / sizeof *services; k++)
        fprintf(stderr, "  %s %s\n", services[k].name, services[k].usage);
    return 2;
}
