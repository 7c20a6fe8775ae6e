/* A VMM's Unix socket behind which each connection becomes a process of its own, as an inetd in the guest starts them.
 *
 *     inetd UDS FILE      runs the words in FILE, each of which ends with a NUL; prints `ready`
 *
 * The process has the connection as stdin and stdout, and inherits stderr. So nothing stands between it and the socket.
 */
#define _GNU_SOURCE
#include "common.h"

#include <signal.h>
#include <sys/socket.h>
#include <sys/wait.h>

#define WORDS 64

static void reap(int signal_number) {
    (void)signal_number;
    while (waitpid(-1, NULL, WNOHANG) > 0) /* their CPU time becomes this process' */
        ;
}

static void become(int fd, const char *path) {
    static char text[1 << 14];
    char *words[WORDS + 1] = {0};
    await_connect(fd);
    if (write(fd, ANSWER, sizeof ANSWER - 1) != sizeof ANSWER - 1)
        die("answer");
    FILE *file = fopen(path, "r");
    if (!file)
        die(path);
    size_t size = fread(text, 1, sizeof text - 1, file), count = 0;
    for (char *word = text; word < text + size && count < WORDS; word += strlen(word) + 1)
        words[count++] = word;
    if (!count || dup2(fd, 0) < 0 || dup2(fd, 1) < 0)
        die(path);
    execvp(words[0], words);
    die(words[0]);
}

int main(int argc, char **argv) {
    struct sigaction on_child = {.sa_handler = reap, .sa_flags = SA_NOCLDSTOP};
    if (argc != 3) {
        fprintf(stderr, "usage: inetd UDS FILE\n");
        return 2;
    }
    sigaction(SIGCHLD, &on_child, NULL);
    int listener = listen_at(argv[1]);
    dprintf(1, "ready\n");
    for (;;) {
        int fd = accept4(listener, NULL, NULL, SOCK_CLOEXEC);
        if (fd < 0 && errno == EINTR)
            continue;
        pid_t pid = fd < 0 ? -1 : fork();
        if (pid < 0)
            die("accept");
        if (!pid)
            become(fd, argv[2]);
        close(fd);
    }
}
