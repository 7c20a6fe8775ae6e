/* What the kernel starts, ahead of libc. The image is for what starts at every `kubectl exec`: `runcvm-vsock-connect`,
   `fastvsock connect` and `fastvsock exec`. For any other command the writable memory becomes what the linker had made
   it, and from there on this is an ordinary start. So is one for debugging (FASTVSOCK_DEBUG), since the image has no
   stream for a traceback.

   Nothing here may use libc, which has not started: system calls are made directly. */
#include <elf.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/mman.h>
#include <sys/syscall.h>

#include "start.h"

#define MARK "fastvsock: here will be its memory"
#define NAME "runcvm-vsock-connect"
#define DEBUG "FASTVSOCK_DEBUG="

/* The first bytes of the writable segment, as linked; elf.py puts them here when it puts the image there. */
__attribute__((used)) static const volatile unsigned char linked[LINKED] = MARK;

int image_is_made(void)
{
    for (size_t i = 0; i < sizeof MARK; i++) {
        if (linked[i] != (unsigned char)MARK[i]) {
            return 1;
        }
    }
    return 0;
}

#if defined __x86_64__
__asm__(".globl fastvsock_entry\n"
        "fastvsock_entry:\n"
        "    mov %rsp, %rbx\n"
        "    mov %rsp, %rdi\n"
        "    and $-16, %rsp\n"
        "    call fastvsock_choose\n"
        "    mov %rbx, %rsp\n"
        "    xor %edx, %edx\n" /* no function for the end of the process: System V ABI, 3.4.1 */
        "    jmp _start\n");

static long map_anew(uintptr_t address, size_t size)
{
    register long flags __asm__("r10") = MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED;
    register long fd __asm__("r8") = -1;
    register long offset __asm__("r9") = 0;
    long result;
    __asm__ volatile("syscall"
                     : "=a"(result)
                     : "a"(SYS_mmap), "D"(address), "S"(size), "d"(PROT_READ | PROT_WRITE), "r"(flags), "r"(fd),
                       "r"(offset)
                     : "rcx", "r11", "memory");
    return result;
}
#elif defined __aarch64__
__asm__(".globl fastvsock_entry\n"
        "fastvsock_entry:\n"
        "    mov x19, sp\n"
        "    mov x0, sp\n"
        "    bl fastvsock_choose\n"
        "    mov sp, x19\n"
        "    mov x0, #0\n" /* as on x86_64 */
        "    b _start\n");

static long map_anew(uintptr_t address, size_t size)
{
    register long number __asm__("x8") = SYS_mmap;
    register long result __asm__("x0") = (long)address;
    register long length __asm__("x1") = (long)size;
    register long protection __asm__("x2") = PROT_READ | PROT_WRITE;
    register long flags __asm__("x3") = MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED;
    register long fd __asm__("x4") = -1;
    register long offset __asm__("x5") = 0;
    __asm__ volatile("svc 0"
                     : "+r"(result)
                     : "r"(number), "r"(length), "r"(protection), "r"(flags), "r"(fd), "r"(offset)
                     : "memory");
    return result;
}
#endif

static int begins(const char *text, const char *with, size_t count)
{
    for (size_t i = 0; i < count; i++) {
        if (text[i] != with[i]) {
            return 0;
        }
    }
    return 1;
}

static int image_is_wanted(int argc, char **argv, char **environment)
{
    for (; *environment; environment++) {
        if (begins(*environment, DEBUG, sizeof DEBUG - 1)) {
            return 0;
        }
    }
    const char *name = argc ? argv[0] : "";
    for (const char *at = name; *at; at++) {
        if (*at == '/') {
            name = at + 1;
        }
    }
    const char *command = argc > 1 ? argv[1] : "";
    return begins(name, NAME, sizeof NAME) || begins(command, "exec", sizeof "exec") ||
           begins(command, "connect", sizeof "connect");
}

static void restore(const Elf64_Phdr *segment)
{
    /* All its pages: what shares the first one with it in the file is mapped elsewhere. */
    uintptr_t first = segment->p_vaddr & ~(segment->p_align - 1), end = segment->p_vaddr + segment->p_memsz;
    if (map_anew(first, end - first) != (long)first) {
        __builtin_trap();
    }
    volatile uint64_t *to = (volatile uint64_t *)segment->p_vaddr;
    const volatile uint64_t *from = (const volatile uint64_t *)linked;
    for (size_t i = 0; i < sizeof linked / 8; i++) {
        to[i] = from[i];
    }
}

__attribute__((used)) void fastvsock_choose(long *stack)
{
    int argc = (int)stack[0];
    char **argv = (char **)(stack + 1), **environment = argv + argc + 1, **end = environment;
    if (!image_awake || image_is_wanted(argc, argv, environment)) {
        return;
    }
    while (*end) {
        end++;
    }
    const Elf64_Phdr *segments = NULL;
    size_t count = 0;
    for (const Elf64_auxv_t *entry = (const void *)(end + 1); entry->a_type != AT_NULL; entry++) {
        if (entry->a_type == AT_PHDR) {
            segments = (const void *)entry->a_un.a_val;
        } else if (entry->a_type == AT_PHNUM) {
            count = entry->a_un.a_val;
        }
    }
    for (; count; count--, segments++) {
        if (segments->p_type == PT_LOAD && segments->p_flags & PF_W) {
            restore(segments);
        }
    }
}
