/* The program's start by the documented interface (PyConfig): the interpreter is initialised each time. */
#include <Python.h>

#include "start.h"

static void require(PyStatus status)
{
    if (PyStatus_Exception(status)) {
        Py_ExitStatusException(status);
    }
}

void interpreter_initialise(int argc, char **argv, int image)
{
    PyPreConfig early;
    PyPreConfig_InitIsolatedConfig(&early);
    early.utf8_mode = 1; /* names of files are UTF-8 with surrogateescape, whatever the locale is */
    early.configure_locale = 0;
    early.coerce_c_locale = 0;
    require(Py_PreInitialize(&early));

    PyConfig config;
    PyConfig_InitIsolatedConfig(&config);
    config.site_import = 0;
    config.pathconfig_warnings = 0;
    config.write_bytecode = 0;
    config.use_frozen_modules = 1;
    config.module_search_paths_set = 1; /* empty: nothing is ever loaded from the disk */
    config.parse_argv = 0;              /* all arguments are the program's, as `-c` here would not be Python's */
    config.code_debug_ranges = 0;
    config.install_signal_handlers = !image;
    config.use_hash_seed = image; /* dictionaries keep their order in an image: with the seed 0 */
    config.hash_seed = 0;
    config._init_main = 0; /* in two steps: "Multi-Phase Initialization" in the documentation */
    require(PyConfig_SetBytesArgv(&config, argc, argv));
    require(Py_InitializeFromConfig(&config));
    PyGC_Disable(); /* what is imported at the start leaves no garbage; start.py enables it again */
    require(_Py_InitializeMain());
    PyConfig_Clear(&config);
}

int plain_start(int argc, char **argv)
{
    interpreter_initialise(argc, argv, 0);
    PyObject *start = PyImport_ImportModule("_fastvsock_start");
    PyObject *result = start ? PyObject_CallMethod(start, "main", NULL) : NULL;
    if (result == NULL) {
        PyErr_Print(); /* also ends the process where it is a SystemExit */
    }
    return result == NULL;
}
