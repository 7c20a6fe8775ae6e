/* Shared by the ends: a clock, a checksum, and one loop each for bytes that leave and bytes that arrive.
 *
 * Times are CLOCK_MONOTONIC in nanoseconds, so stamps of different processes can be subtracted. The checksum (CRC-32,
 * zlib's) is computed only in trials: in measured rounds the ends count the bytes, and do nothing else with them.
 */
#ifndef COMMON_H
#define COMMON_H

#include <errno.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

#define READ_SIZE (1 << 18)
#define ANSWER "OK 1073741824\n" /* as long as Firecracker's */

struct tally {
    uint64_t bytes;
    uint64_t begin, end; /* nanoseconds */
    uint32_t crc;
};

static inline void die(const char *what) {
    perror(what);
    exit(1);
}

static inline uint64_t now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

static inline uint32_t crc32_add(uint32_t crc, const unsigned char *data, size_t size) {
    static uint32_t table[256];
    if (!table[1]) {
        for (uint32_t i = 256; i-- > 1;) { /* downwards: table[1], the sign that it is complete, comes last */
            uint32_t c = i;
            for (int bit = 0; bit < 8; bit++)
                c = c & 1 ? 0xedb88320u ^ c >> 1 : c >> 1;
            table[i] = c;
        }
    }
    crc = ~crc;
    while (size--)
        crc = table[(crc ^ *data++) & 0xff] ^ crc >> 8;
    return ~crc;
}

/* A stream in which no block is like another, from byte `offset` on; offset and size are multiples of 8. */
static inline void fill(unsigned char *data, size_t size, uint64_t offset) {
    for (size_t i = 0; i < size; i += 8) {
        uint64_t word = ((offset + i) / 8 + 1) * 0x9e3779b97f4a7c15u;
        memcpy(data + i, &word, 8);
    }
}

/* Write `bytes` bytes in writes of `chunk`; with `check` each is different and the checksum is computed. */
static inline void send_stream(int fd, uint64_t bytes, size_t chunk, int check, struct tally *tally) {
    unsigned char *data = malloc((chunk + 7) & ~(size_t)7);
    if (!data)
        die("malloc");
    fill(data, (chunk + 7) & ~(size_t)7, 0);
    tally->begin = now();
    while (tally->bytes < bytes) {
        size_t size = bytes - tally->bytes < chunk ? bytes - tally->bytes : chunk, done = 0;
        if (check) {
            if (chunk % 8 == 0)
                fill(data, chunk, tally->bytes);
            tally->crc = crc32_add(tally->crc, data, size);
        }
        while (done < size) {
            ssize_t n = write(fd, data + done, size - done);
            if (n < 0 && errno == EINTR)
                continue;
            if (n < 0)
                goto broken;
            done += (size_t)n;
            tally->bytes += (uint64_t)n;
        }
    }
broken:
    tally->end = now();
    free(data);
}

/* Read until `bytes` bytes have come, or the end. */
static inline void receive_stream(int fd, uint64_t bytes, int check, struct tally *tally) {
    unsigned char *data = malloc(READ_SIZE);
    if (!data)
        die("malloc");
    tally->begin = now();
    while (tally->bytes < bytes) {
        ssize_t n = read(fd, data, READ_SIZE);
        if (n < 0 && errno == EINTR)
            continue;
        if (n <= 0)
            break;
        if (check)
            tally->crc = crc32_add(tally->crc, data, (size_t)n);
        tally->bytes += (uint64_t)n;
    }
    tally->end = now();
    free(data);
}

/* One line; a single write of this size to a pipe is not torn. */
static inline void report(int fd, const char *way, const struct tally *t) {
    dprintf(fd, "%s %llu %u %llu %llu\n", way, (unsigned long long)t->bytes, t->crc, (unsigned long long)t->begin,
            (unsigned long long)t->end);
}

/* Everyone who takes part waits for the end of file of one pipe: it comes to all in the same moment. */
static inline void await_start(void) {
    char byte;
    ssize_t n;
    do
        n = read(0, &byte, 1);
    while (n > 0 || (n < 0 && errno == EINTR));
}

static inline int listen_at(const char *path) {
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    if (strlen(path) >= sizeof address.sun_path) {
        fprintf(stderr, "path too long: %s\n", path);
        exit(2);
    }
    strcpy(address.sun_path, path);
    int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (fd < 0 || bind(fd, (struct sockaddr *)&address, sizeof address) || listen(fd, 1024))
        die(path);
    return fd;
}

static inline void await_connect(int fd) {
    char c = 0;
    while (c != '\n')
        if (read(fd, &c, 1) != 1)
            die("no CONNECT line");
}

static inline uint64_t number(const char *text) {
    char *rest;
    errno = 0;
    uint64_t value = strtoull(text, &rest, 10);
    if (errno || rest == text || *rest) {
        fprintf(stderr, "not a number: %s\n", text);
        exit(2);
    }
    return value;
}

#endif
