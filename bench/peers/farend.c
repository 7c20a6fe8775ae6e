/* The far end: a VMM's Unix socket with a guest's service behind it, fast enough never to be what is measured.
 *
 *     farend UDS SERVICE BYTES CONNECTIONS [plain] [hold] [check]
 *
 * SERVICE is sink (reads BYTES), source (writes BYTES), duplex (both at once) or echo. The far end accepts CONNECTIONS
 * connections, with one thread for each (two for duplex), and prints `ready`, then `open` for each connection, then a
 * line for each stream (see report()). The streams begin when stdin ends. The connections stay open until SIGTERM, so
 * that their forwarder can be examined while it lives; then the number of bytes read is sent back, and all are closed.
 *
 * plain: no handshake, for peers that do not know it. hold: the handshake is answered only when stdin ends, for an
 * input that cannot be held back (a file). check: checksums.
 */
#define _GNU_SOURCE
#include "common.h"

#include <pthread.h>
#include <signal.h>

#define CHUNK (1 << 16) /* Firecracker writes packets of up to 64 KiB */

static struct {
    const char *service;
    uint64_t bytes;
    int plain, hold, check;
} options;

struct connection {
    int fd;
    pthread_t thread;
    struct tally in;
};

static void handshake(int fd) {
    await_connect(fd);
    if (options.hold) {
        dprintf(1, "open\n");
        await_start();
    }
    if (write(fd, ANSWER, sizeof ANSWER - 1) != sizeof ANSWER - 1)
        die("answer");
    if (!options.hold)
        dprintf(1, "open\n");
}

static void *source(void *argument) {
    struct connection *c = argument;
    struct tally out = {0};
    send_stream(c->fd, options.bytes, CHUNK, options.check, &out);
    report(1, "out", &out);
    return NULL;
}

static void *sink(void *argument) {
    struct connection *c = argument;
    receive_stream(c->fd, options.bytes, options.check, &c->in);
    report(1, "in", &c->in);
    return NULL;
}

static void *echo(void *argument) {
    struct connection *c = argument;
    static const size_t size = 1 << 17;
    char *data = malloc(size);
    if (!data)
        die("malloc");
    for (ssize_t n; (n = read(c->fd, data, size)) > 0;)
        for (ssize_t done = 0, m; done < n; done += m)
            if ((m = write(c->fd, data + done, (size_t)(n - done))) < 0)
                return NULL;
    free(data);
    return NULL;
}

static void *serve(void *argument) {
    struct connection *c = argument;
    pthread_t other;
    if (options.plain)
        dprintf(1, "open\n");
    else
        handshake(c->fd);
    await_start();
    if (!strcmp(options.service, "echo"))
        return echo(c);
    if (!strcmp(options.service, "source"))
        return source(c);
    if (!strcmp(options.service, "sink"))
        return sink(c);
    if (pthread_create(&other, NULL, source, c))
        die("pthread_create");
    sink(c);
    pthread_join(other, NULL);
    return NULL;
}

int main(int argc, char **argv) {
    sigset_t terminate;
    int received;
    if (argc < 5) {
        fprintf(stderr, "usage: farend UDS sink|source|duplex|echo BYTES CONNECTIONS [plain] [hold] [check]\n");
        return 2;
    }
    options.service = argv[2];
    options.bytes = number(argv[3]);
    size_t count = number(argv[4]);
    for (int i = 5; i < argc; i++) {
        options.plain |= !strcmp(argv[i], "plain");
        options.hold |= !strcmp(argv[i], "hold");
        options.check |= !strcmp(argv[i], "check");
    }
    signal(SIGPIPE, SIG_IGN);
    sigemptyset(&terminate);
    sigaddset(&terminate, SIGTERM);
    sigprocmask(SIG_BLOCK, &terminate, NULL); /* sigwait() below takes it, and no thread dies of it */
    crc32_add(0, NULL, 0);
    int listener = listen_at(argv[1]);
    struct connection *all = calloc(count, sizeof *all);
    if (!all)
        die("calloc");
    dprintf(1, "ready\n");
    for (size_t i = 0; i < count; i++) {
        all[i].fd = accept(listener, NULL, NULL);
        if (all[i].fd < 0 || pthread_create(&all[i].thread, NULL, serve, &all[i]))
            die("accept");
    }
    sigwait(&terminate, &received);
    for (size_t i = 0; i < count; i++)
        if (all[i].in.bytes)
            dprintf(all[i].fd, "%llu %u\n", (unsigned long long)all[i].in.bytes, all[i].in.crc);
    return 0;
}
