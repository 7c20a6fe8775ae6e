/* Chooses how the program starts. IMAGE is defined for the kind that may begin in the middle: see README.md. */
#include <stddef.h>

#include "heap.h"
#include "start.h"

/* What the file is known by where it cannot be run: `fastvsock runcvm` looks for it. */
__attribute__((used, retain)) static const char mark[] = "fastvsock " VERSION ", one static executable";

int main(int argc, char **argv)
{
#ifdef IMAGE
    if (image_awake) {
        return image_resume(argc, argv);
    }
    if (!image_is_made()) {
        image_make(argc > 1 ? argv[1] : NULL);
    }
#endif
    heap_survive_forks();
    return plain_start(argc, argv);
}
