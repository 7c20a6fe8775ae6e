/* Stands for the static binary, whose build takes long: an executable that runtime and installer take for it, and that
   becomes PYTHON with the package of this source. */

#include <stdlib.h>
#include <string.h>
#include <unistd.h>

__attribute__((used)) static const char mark[] = "fastvsock " VERSION ", one static executable";

int main(int argc, char **argv)
{
    const char *slash = strrchr(argv[0], '/'), *name = slash ? slash + 1 : argv[0];
    int connects = !strcmp(name, "runcvm-vsock-connect");
    char **words = calloc(argc + 3, sizeof *words);

    words[0] = PYTHON;
    words[1] = "-m";
    words[2] = connects ? "fastvsock.runcvm_vsock_connect" : "fastvsock";
    memcpy(words + 3, argv + 1, argc * sizeof *words);
    execv(PYTHON, words);
    return 127;
}
