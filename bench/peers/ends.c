/* The near ends: they take the place of tar, ssh or a person before and behind a forwarder.
 *
 *     ends produce BYTES CHUNK [check]   waits for the end of stdin, writes BYTES to stdout, reports on stderr; stays
 *     ends consume BYTES [check]         reads BYTES from stdin, reports on stdout; then reads on until the end
 *     ends ping SIZE COUNT               writes SIZE bytes to stdout and waits for as many from stdin, COUNT times;
 *                                        reports on stderr the quantiles 0 to 100 of the round trips, in nanoseconds
 *
 * The producer keeps stdout open until it is killed: what a peer does at the end of its input is not measured.
 */
#define _GNU_SOURCE
#include "common.h"

#include <poll.h>
#include <signal.h>

#define PATIENCE 2000 /* milliseconds for one round trip */

static int produce(int argc, char **argv) {
    struct tally out = {0};
    if (argc < 4)
        return 2;
    await_start();
    send_stream(1, number(argv[2]), number(argv[3]), argc > 4, &out);
    report(2, "out", &out);
    for (;;)
        pause();
}

static int consume(int argc, char **argv) {
    struct tally in = {0};
    if (argc < 3)
        return 2;
    receive_stream(0, number(argv[2]), argc > 3, &in);
    report(1, "in", &in);
    receive_stream(0, UINT64_MAX, 0, &in);
    return 0;
}

static int ascending(const void *a, const void *b) {
    uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;
    return (x > y) - (x < y);
}

static int exchange(char *data, size_t size) {
    for (size_t done = 0; done < size;) {
        ssize_t n = write(1, data + done, size - done);
        if (n < 0)
            return -1;
        done += (size_t)n;
    }
    for (size_t done = 0; done < size;) {
        struct pollfd in = {.fd = 0, .events = POLLIN};
        ssize_t n = poll(&in, 1, PATIENCE) == 1 ? read(0, data + done, size - done) : -1;
        if (n <= 0)
            return -1;
        done += (size_t)n;
    }
    return 0;
}

static int ping(int argc, char **argv) {
    if (argc < 4)
        return 2;
    size_t size = number(argv[2]), count = number(argv[3]), warm = count / 10;
    char *data = calloc(size, 1);
    uint64_t *times = calloc(count, sizeof *times);
    if (!data || !times || !count)
        die("calloc");
    for (size_t i = 0; i < warm + count; i++) {
        uint64_t begin = now();
        if (exchange(data, size)) {
            dprintf(2, "silence\n");
            return 1;
        }
        if (i >= warm)
            times[i - warm] = now() - begin;
    }
    qsort(times, count, sizeof *times, ascending);
    dprintf(2, "quantiles");
    for (size_t q = 0; q <= 100; q++)
        dprintf(2, " %llu", (unsigned long long)times[(count - 1) * q / 100]);
    dprintf(2, "\n");
    return 0;
}

int main(int argc, char **argv) {
    const char *role = argc > 1 ? argv[1] : "";
    int status = 2;
    signal(SIGPIPE, SIG_IGN);
    if (!strcmp(role, "produce"))
        status = produce(argc, argv);
    else if (!strcmp(role, "consume"))
        status = consume(argc, argv);
    else if (!strcmp(role, "ping"))
        status = ping(argc, argv);
    if (status == 2)
        fprintf(stderr, "usage: ends produce BYTES CHUNK [check] | consume BYTES [check] | ping SIZE COUNT\n");
    return status;
}
