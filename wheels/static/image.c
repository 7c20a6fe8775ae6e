/* The start from an image: the memory of an interpreter that has imported all that `runcvm-vsock-connect` needs.

   While the program is built it runs once (image_make), and its writable memory becomes the data of the executable
   (elf.py). The program is not position-independent, so that each address stays what it was; ASLR moves the stack,
   the vDSO and mappings, and none of these is kept: memory comes from the pool (heap.c), no file is open, and what
   the kernel says of the machine is hidden. What a process has of its own is renewed when it goes on from there
   (image_resume): its threads' numbers, the environment, the arguments, and which signals are ignored. libc's own
   start has run as ever by then.

   This uses internals of one version of CPython; the README says what to look at in the next one. */
#include <Python.h>
#include <elf.h>
#include <fcntl.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/auxv.h>
#include <linux/auxvec.h>
#include <unistd.h>

#include "heap.h"
#include "internal/pycore_pystate.h"
#include "internal/pycore_runtime.h"
#include "start.h"

extern char **environ;
extern size_t __hwcap; /* of libc's */

volatile int image_awake;
static PyObject *resume;     /* _fastvsock_start.resume */
static PyObject *set_signal; /* _signal.signal */

static int errors = 2; /* where an error is reported: there is no sys.stderr */

static void require(const void *result)
{
    if (result == NULL) {
        PyObject *type, *error, *trace;
        PyErr_Fetch(&type, &error, &trace);
        PyObject *text = error ? PyObject_Str(error) : NULL;
        const char *reason = text ? PyUnicode_AsUTF8(text) : NULL;
        dprintf(errors, "fastvsock: the interpreter cannot start: %s\n", reason ? reason : "out of memory");
        _exit(1);
    }
}

/* Hide from this process what the kernel says of itself and of the processor. libc keeps the address of the vDSO's
   clock_gettime() once it has looked for it, and that is another in each process; without one it makes system
   calls. The interpreter keeps how large a signal's frame is. What libc itself has kept by now it writes again at
   each start. */
static void hide_machine(void)
{
    __hwcap = 0;
    char **end = environ;
    while (*end) {
        end++;
    }
    for (Elf64_auxv_t *entry = (void *)(end + 1); entry->a_type != AT_NULL; entry++) {
        if (entry->a_type == AT_SYSINFO_EHDR || entry->a_type == AT_MINSIGSTKSZ) {
            entry->a_type = AT_IGNORE;
        }
    }
}

/* Remove what is this process' own and would make the image another each time: its number, pointers into its stack,
   and the secret of the stack protector (src/env/__stack_chk_fail.c of musl clears one byte of it). libc's start
   writes them again. */
static void anonymise(char *memory, size_t size)
{
    uint64_t secret, here = (uintptr_t)&secret;
    uint64_t lowest = here - (8u << 20), highest = getauxval(AT_EXECFN) + 4096;
    memcpy(&secret, (void *)getauxval(AT_RANDOM), sizeof secret);
    uint64_t without_byte = secret & ~(uint64_t)0xff00;
    uint64_t *word = (void *)(((uintptr_t)memory + 7) & ~(uintptr_t)7);
    for (; (char *)(word + 1) <= memory + size; word++) {
        if (*word == secret || *word == without_byte || (*word > lowest && *word < highest)) {
            *word = 0;
        }
    }
}

static void forget_thread(void)
{
    PyThreadState *state = _PyThreadState_GET();
    unsigned long number = PyThread_get_thread_native_id();
    int *thread = (int *)PyThread_get_thread_ident(); /* libc's description of it, which holds its number */
    for (int i = 0; i < 64; i++) {
        if ((unsigned long)thread[i] == number) {
            thread[i] = 0;
        }
    }
    state->native_thread_id = 0;
}

/* What _signal knows of each signal in an image, whoever builds it and however: SIGPIPE and SIGXFSZ are ignored, as
   the interpreter's initialisation has it, and the others are not. */
static void settle_signals(void)
{
    for (int number = 1; number < NSIG; number++) {
        PyOS_setsig(number, number == SIGPIPE || number == SIGXFSZ ? SIG_IGN : SIG_DFL);
    }
}

static void write_all(int fd, const void *from, size_t size)
{
    for (size_t done = 0; done < size;) {
        ssize_t written = write(fd, (const char *)from + done, size - done);
        if (written <= 0) {
            _exit(1);
        }
        done += written;
    }
}

/* How much of the pool is used, and the writable segment. */
static void write_memory(int fd)
{
    uint64_t used = heap_used();
    write_all(fd, &used, sizeof used);
    const Elf64_Phdr *segment = (const void *)getauxval(AT_PHDR);
    for (size_t left = getauxval(AT_PHNUM); left; left--, segment++) {
        if (segment->p_type != PT_LOAD || !(segment->p_flags & PF_W)) {
            continue;
        }
        char *memory = (char *)segment->p_vaddr;
        anonymise(memory, segment->p_memsz);
        write_all(fd, memory, segment->p_memsz);
    }
}

_Noreturn void image_make(const char *path)
{
    int fd = path ? open(path, O_WRONLY | O_CREAT | O_TRUNC, 0644) : -1;
    if (fd < 0) {
        _exit(2);
    }
    errors = dup(2);
    for (int standard = 0; standard < 3; standard++) {
        close(standard); /* no sys.stdin, stdout and stderr, whose buffers and kinds would be those of this process */
    }
    settle_signals();
    hide_machine();
    heap_pooled = 1;
    heap_survive_forks();
    PyObjectArenaAllocator arenas = {NULL, heap_map, heap_unmap};
    PyObject_SetArenaAllocator(&arenas);
    char *nothing[] = {"", NULL};
    interpreter_initialise(1, nothing, 1);
    PyObject *start = PyImport_ImportModule("_fastvsock_start");
    require(start);
    require(resume = PyObject_GetAttrString(start, "resume"));
    PyObject *signals = PyImport_ImportModule("_signal");
    require(signals);
    require(set_signal = PyObject_GetAttrString(signals, "signal"));
    require(PyObject_CallMethod(start, "prepare", NULL));
    forget_thread();
    heap_pooled = 0;
    errors = 2;
    image_awake = 1;
    write_memory(fd);
    _exit(0);
}

static void adopt_thread(void)
{
    PyThreadState *state = _PyThreadState_GET();
    state->thread_id = _PyRuntime.main_thread = PyThread_get_thread_ident();
    state->native_thread_id = PyThread_get_thread_native_id();
    struct _gilstate_runtime_state *gil = &_PyRuntime.gilstate;
    gil->autoTSSkey = (Py_tss_t)Py_tss_NEEDS_INIT; /* the values of a key are the thread's, and this is a new thread */
    if (PyThread_tss_create(&gil->autoTSSkey) || PyThread_tss_set(&gil->autoTSSkey, state)) {
        require(NULL);
    }
}

/* Tell _signal which others this process ignores. To execute the module again would too, and write to 70 pages. */
static void adopt_signals(void)
{
    PyOS_setsig(SIGPIPE, SIG_IGN);
    PyOS_setsig(SIGXFSZ, SIG_IGN);
    for (int number = 1; number < NSIG; number++) {
        if (number != SIGPIPE && number != SIGXFSZ && PyOS_getsig(number) == SIG_IGN) {
            require(PyObject_CallFunction(set_signal, "il", number, (long)SIG_IGN));
        }
    }
}

static PyObject *arguments(int argc, char **argv)
{
    PyObject *list = PyList_New(argc);
    require(list);
    for (int i = 0; i < argc; i++) {
        PyObject *word = PyUnicode_DecodeFSDefault(argv[i]);
        require(word);
        PyList_SET_ITEM(list, i, word);
    }
    return list;
}

/* The environment as posix.environ has it: the first of two variables of one name counts. */
static PyObject *environment(void)
{
    PyObject *variables = PyDict_New();
    require(variables);
    for (char **variable = environ; *variable; variable++) {
        const char *equals = strchr(*variable, '=');
        if (equals == NULL) {
            continue;
        }
        PyObject *name = PyBytes_FromStringAndSize(*variable, equals - *variable);
        require(name);
        PyObject *value = PyBytes_FromString(equals + 1);
        require(value);
        require(PyDict_SetDefault(variables, name, value));
        Py_DECREF(name);
        Py_DECREF(value);
    }
    return variables;
}

int image_resume(int argc, char **argv)
{
    adopt_thread();
    adopt_signals();
    require(PyObject_CallFunctionObjArgs(resume, arguments(argc, argv), environment(), NULL));
    return 0; /* not reached: the program ends the process itself */
}
