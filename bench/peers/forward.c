/* A forwarder in C: no interpreter, one thread for each direction. The ceiling.
 *
 *     forward copy UDS PORT          read(2) and write(2), 64 KiB at a time
 *     forward splice UDS PORT        splice(2); pipes of 1 MiB, a send buffer of 4 MiB; poll(2) after EAGAIN
 *     forward prelude UDS PORT CMD   connects, shakes hands, and becomes CMD with the socket as descriptor 3
 *     forward activate FD CMD        becomes CMD with the listening socket FD as systemd would pass it
 *     forward relay CMD              runs CMD, with pipes between it and the socket that is stdin and stdout, by splice(2)
 *
 * It does not handle half-closing, signals or slow readers; it ends when the guest closes. splice(2) must not block
 * here: from a socket to a pipe it waits for data with the pipe locked (fs/splice.c, splice_file_to_pipe()), and the
 * reader of the pipe cannot read what is in it.
 */
#define _GNU_SOURCE
#include "common.h"

#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <sys/wait.h>

#define COPY_SIZE (1 << 16)
#define PIPE_SIZE (1 << 20)
#define SEND_BUFFER (1 << 22)

struct way {
    int from, to;
};

static int open_port(const char *path, const char *port) {
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    char line[32], c = 0;
    if (strlen(path) >= sizeof address.sun_path)
        exit(2);
    strcpy(address.sun_path, path);
    int fd = socket(AF_UNIX, SOCK_STREAM, 0);
    if (fd < 0 || connect(fd, (struct sockaddr *)&address, sizeof address))
        die(path);
    int size = snprintf(line, sizeof line, "CONNECT %s\n", port);
    if (write(fd, line, (size_t)size) != size)
        die("handshake");
    while (c != '\n')
        if (read(fd, &c, 1) != 1)
            die("refused");
    return fd;
}

static void *copy(void *argument) {
    struct way *way = argument;
    static __thread char data[COPY_SIZE];
    for (ssize_t n; (n = read(way->from, data, sizeof data)) > 0;)
        for (ssize_t done = 0, m; done < n; done += m)
            if ((m = write(way->to, data + done, (size_t)(n - done))) < 0)
                return NULL;
    return NULL;
}

static int is_pipe(int fd) {
    struct stat status;
    return !fstat(fd, &status) && S_ISFIFO(status.st_mode);
}

/* splice(2) does not say which end was short: each is waited for in turn. */
static ssize_t move_some(int from, int to, size_t size) {
    for (;;) {
        struct pollfd in = {.fd = from, .events = POLLIN}, out = {.fd = to, .events = POLLOUT};
        ssize_t n = splice(from, NULL, to, NULL, size, SPLICE_F_MOVE | SPLICE_F_NONBLOCK);
        if (n >= 0 || errno != EAGAIN)
            return n;
        poll(&in, 1, -1);
        poll(&out, 1, -1);
    }
}

static void *splice_way(void *argument) {
    struct way *way = argument;
    int between[2];
    ssize_t n, m;
    if (is_pipe(way->from) || is_pipe(way->to)) {
        while (move_some(way->from, way->to, PIPE_SIZE) > 0)
            ;
        return NULL;
    }
    if (pipe(between))
        die("pipe");
    fcntl(between[0], F_SETPIPE_SZ, PIPE_SIZE);
    while ((n = move_some(way->from, between[1], PIPE_SIZE)) > 0)
        for (; n > 0; n -= m)
            if ((m = move_some(between[0], way->to, (size_t)n)) <= 0)
                return NULL;
    return NULL;
}

static void enlarge(int pipe_in, int pipe_out, int sock) {
    int size = SEND_BUFFER;
    fcntl(pipe_in, F_SETPIPE_SZ, PIPE_SIZE);
    fcntl(pipe_out, F_SETPIPE_SZ, PIPE_SIZE);
    if (setsockopt(sock, SOL_SOCKET, SO_SNDBUFFORCE, &size, sizeof size))
        setsockopt(sock, SOL_SOCKET, SO_SNDBUF, &size, sizeof size);
}

/* Move bytes both ways until `ending` has no more. */
static void join(void *(*move)(void *), struct way *other, struct way *ending) {
    pthread_t thread;
    if (pthread_create(&thread, NULL, move, other))
        die("pthread_create");
    move(ending);
}

static int forward(const char *kind, int sock) {
    void *(*move)(void *) = !strcmp(kind, "splice") ? splice_way : copy;
    struct way up = {0, sock}, down = {sock, 1};
    if (move == splice_way)
        enlarge(0, 1, sock);
    join(move, &up, &down);
    return 0;
}

static void become(char **command) {
    signal(SIGPIPE, SIG_DFL);
    execvp(command[0], command);
    die(command[0]);
}

static int relay(char **command) {
    int in[2], out[2];
    pid_t pid;
    if (pipe2(in, O_CLOEXEC) || pipe2(out, O_CLOEXEC) || (pid = fork()) < 0)
        die("start");
    if (!pid) {
        if (dup2(in[0], 0) < 0 || dup2(out[1], 1) < 0)
            die("dup2");
        become(command);
    }
    close(in[0]);
    close(out[1]);
    enlarge(in[1], out[0], 1);
    struct way up = {0, in[1]}, down = {out[0], 1};
    join(splice_way, &up, &down);
    return waitpid(pid, NULL, 0) < 0; /* it may have closed its stdout, and read on */
}

static void activate(int fd, char **command) {
    char pid[16];
    if (dup2(fd, 3) < 0) /* SD_LISTEN_FDS_START: sd_listen_fds(3) */
        die("dup2");
    if (fd != 3)
        close(fd);
    snprintf(pid, sizeof pid, "%d", (int)getpid());
    setenv("LISTEN_PID", pid, 1);
    setenv("LISTEN_FDS", "1", 1);
    become(command);
}

int main(int argc, char **argv) {
    const char *kind = argc > 3 ? argv[1] : "";
    signal(SIGPIPE, SIG_IGN);
    if (argc > 2 && !strcmp(argv[1], "relay"))
        return relay(argv + 2);
    if (!strcmp(kind, "activate"))
        activate((int)number(argv[2]), argv + 3);
    if (!strcmp(kind, "copy") || !strcmp(kind, "splice"))
        return forward(kind, open_port(argv[2], argv[3]));
    if (!strcmp(kind, "prelude") && argc > 4) {
        int sock = open_port(argv[2], argv[3]);
        if (sock != 3 && (dup2(sock, 3) < 0 || close(sock)))
            die("dup2");
        become(argv + 4);
    }
    fprintf(stderr, "usage: forward copy|splice UDS PORT | prelude UDS PORT CMD | activate FD CMD | relay CMD\n");
    return 2;
}
