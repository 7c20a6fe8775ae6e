/* malloc(3) of the program, and the pool from which an image is made: heap.c. */
#ifndef FASTVSOCK_HEAP_H
#define FASTVSOCK_HEAP_H

#include <stddef.h>

/* While it is set, all memory comes from the pool, which is a part of the program's own writable memory. */
extern volatile int heap_pooled;

/* Bytes of the pool in use. */
size_t heap_used(void);

/* Large blocks for the interpreter's own allocator, in the shape of PyObjectArenaAllocator. */
void *heap_map(void *context, size_t size);
void heap_unmap(void *context, void *block, size_t size);

/* Keep the heap usable in the children of fork(2). */
void heap_survive_forks(void);

#endif
