/* In place of Modules/getpath.c, which looks for a library on the disk at each start: pyvenv.cfg and lib/python3.11
   above the working folder and above the program in each folder of PATH, from where code would be run. This
   program's modules are in it, and nothing is looked for. Linked ahead of libpython, it keeps that object out. */
#include <Python.h>
#include "internal/pycore_initconfig.h"
#include "internal/pycore_pathconfig.h"

PyObject *_Py_Get_Getpath_CodeObject(void) { return NULL; }

PyStatus _PyConfig_InitPathConfig(PyConfig *config, int compute_path_config)
{
    wchar_t **paths[] = {
        &config->program_name, &config->executable,  &config->base_executable,  &config->prefix,
        &config->base_prefix,  &config->exec_prefix, &config->base_exec_prefix, &config->stdlib_dir,
        &config->platlibdir,
    };
    for (size_t i = 0; compute_path_config && i < Py_ARRAY_LENGTH(paths); i++) {
        if (*paths[i] == NULL) {
            PyStatus status = PyConfig_SetString(config, paths[i], L"");
            if (PyStatus_Exception(status)) {
                return status;
            }
        }
    }
    config->module_search_paths_set = 1;
    return PyStatus_Ok();
}
