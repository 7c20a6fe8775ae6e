/* malloc(3) in place of libc's. An image needs one whose memory can be a part of the executable, with no mapping
   and no pointer out of it; and the start of an interpreter is a few thousand blocks, for which one piece of memory
   is enough.

   A block has its size in the 16 bytes ahead of it; the lowest bit marks a mapping of its own. Small blocks come in
   steps of 16 bytes, larger ones in powers of two, and a free one goes to the list of its size and is taken from
   there. Compile with -fno-builtin: a compiler makes calloc() of malloc() and memset(), and so of calloc() itself. */
#include "heap.h"

#include <errno.h>
#include <pthread.h>
#include <sched.h>
#include <stdint.h>
#include <string.h>
#include <sys/mman.h>

enum {
    HEADER = 16,
    STEP = 16,                         /* bytes between the sizes of small blocks */
    STEPS = 256,                       /* of them, up to SMALL */
    SMALL = STEP * STEPS,              /* 4 KiB */
    LARGEST_CLASS = 17,                /* 128 KiB, as a power of two: from there on a block is a mapping */
    CLASSES = STEPS + 1 + LARGEST_CLASS - 12,
    PIECE = 1 << 18,                   /* what is mapped at once for smaller blocks */
    PAGE = 4096,
    ARENA_ALIGNMENT = 1 << 14,         /* of what the interpreter's own allocator cuts into pages: POOL_SIZE there */
};
#ifndef POOL
#define POOL PAGE /* the build gives what an image takes, and none else needs any */
#endif

volatile int heap_pooled;
static _Alignas(PAGE) char pool[POOL];
static size_t used = HEADER;
static char *piece, *piece_end;
static void *free_blocks[CLASSES];
static char busy;

static void lock(void)
{
    while (__atomic_test_and_set(&busy, __ATOMIC_ACQUIRE)) {
        sched_yield();
    }
}

static void unlock(void)
{
    __atomic_clear(&busy, __ATOMIC_RELEASE);
}

void heap_survive_forks(void)
{
    pthread_atfork(lock, unlock, unlock);
}

size_t heap_used(void)
{
    return used;
}

static size_t *size_of(void *block)
{
    return (size_t *)((char *)block - HEADER);
}

static size_t class_of(size_t size)
{
    if (size <= SMALL) {
        return (size + STEP - 1) / STEP;
    }
    return STEPS + (sizeof(long) * 8 - __builtin_clzl(size - 1)) - 12;
}

static size_t class_size(size_t class)
{
    return class <= STEPS ? class * STEP : (size_t)1 << (class - STEPS + 12);
}

static void *map(size_t size)
{
    void *memory = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    return memory == MAP_FAILED ? NULL : memory;
}

static void *from_pool(size_t size, size_t alignment)
{
    size_t start = (used + alignment - 1) & ~(alignment - 1);
    if (start > POOL || size > POOL - start) {
        return NULL;
    }
    used = start + size;
    return pool + start;
}

/* Memory for a block that no list has. */
static char *fresh(size_t size)
{
    if (heap_pooled) {
        return from_pool(size, STEP);
    }
    if (size > (size_t)(piece_end - piece)) {
        char *memory = map(PIECE); /* the rest of the last piece is lost: less than one block */
        if (memory == NULL) {
            return NULL;
        }
        piece = memory;
        piece_end = memory + PIECE;
    }
    piece += size;
    return piece - size;
}

static void *own_mapping(size_t size)
{
    size_t whole = (size + HEADER + PAGE - 1) & ~(size_t)(PAGE - 1);
    char *memory = map(whole);
    if (memory == NULL) {
        errno = ENOMEM;
        return NULL;
    }
    *(size_t *)memory = (whole - HEADER) | 1;
    return memory + HEADER;
}

void *malloc(size_t size)
{
    if (size > PTRDIFF_MAX - 2 * PAGE) {
        errno = ENOMEM;
        return NULL;
    }
    if (!heap_pooled && size > (size_t)1 << LARGEST_CLASS) {
        return own_mapping(size);
    }
    size_t class = class_of(size ? size : 1), length = class_size(class);
    int listed = 1;
    if (heap_pooled && size > SMALL) { /* the image should be small: no rounding up, and no list has such a size */
        length = (size + STEP - 1) & ~(size_t)(STEP - 1);
        listed = 0;
    }
    lock();
    char *block = listed ? free_blocks[class] : NULL;
    if (block) {
        free_blocks[class] = *(void **)block;
    } else if ((block = fresh(length + HEADER))) {
        *(size_t *)block = length;
        block += HEADER;
    }
    unlock();
    if (block == NULL) {
        errno = ENOMEM;
    }
    return block;
}

void free(void *block)
{
    if (block == NULL) {
        return;
    }
    size_t length = *size_of(block);
    if (length & 1) {
        munmap((char *)block - HEADER, (length & ~(size_t)1) + HEADER);
        return;
    }
    if (heap_pooled) {
        memset(block, 0, length); /* what the image does not need should not be in it */
    }
    if (length > (size_t)1 << LARGEST_CLASS || class_size(class_of(length)) != length) {
        return; /* from the pool, and of no list's size */
    }
    lock();
    *(void **)block = free_blocks[class_of(length)];
    free_blocks[class_of(length)] = block;
    unlock();
}

void *calloc(size_t count, size_t each)
{
    size_t size;
    if (__builtin_mul_overflow(count, each, &size)) {
        errno = ENOMEM;
        return NULL;
    }
    void *block = malloc(size);
    if (block && !(*size_of(block) & 1)) { /* a mapping is zero already */
        memset(block, 0, size);
    }
    return block;
}

void *realloc(void *block, size_t size)
{
    if (block == NULL) {
        return malloc(size);
    }
    size_t old = *size_of(block) & ~(size_t)1;
    if (size <= old && (size > old / 4 || old <= SMALL)) {
        return block;
    }
    void *larger = malloc(size);
    if (larger) {
        memcpy(larger, block, size < old ? size : old);
        free(block);
    }
    return larger;
}

void *heap_map(void *context, size_t size)
{
    (void)context;
    return heap_pooled ? from_pool(size, ARENA_ALIGNMENT) : map(size);
}

void heap_unmap(void *context, void *block, size_t size)
{
    (void)context;
    if ((char *)block < pool || (char *)block >= pool + POOL) {
        munmap(block, size);
    }
}
