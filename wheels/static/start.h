/* The two ways to start: see README.md. main.c chooses. */
#ifndef FASTVSOCK_START_H
#define FASTVSOCK_START_H

/* plain.c: initialise the interpreter; `image`: for one, without this process' signals and its hash seed. */
void interpreter_initialise(int argc, char **argv, int image);

/* plain.c: initialise the interpreter, and run the program whose name is in argv[0]. */
int plain_start(int argc, char **argv);

/* image.c: whether this process began with the memory of the image, which image_resume() goes on from. */
extern volatile int image_awake;
int image_resume(int argc, char **argv);

/* image.c: write the memory of an initialised interpreter to the file `path`. Does not return. */
_Noreturn void image_make(const char *path);

/* entry.c: whether this program has an image already, and what its writable memory was without. */
int image_is_made(void);

#endif
