/* Starts Python for libbnnumba_embed, as that of one environment and nothing else. */

#define _GNU_SOURCE /* dladdr */
#include <Python.h>
#include <dlfcn.h>
#include <signal.h>

#include "interpreter.h"

/* Extension modules look for Python's symbols among those of the process, not in our library's. */
static void share_symbols(void)
{
    Dl_info python;
    if (dladdr((void *)&PyExc_SystemError, &python) && python.dli_fname)
        dlopen(python.dli_fname, RTLD_NOW | RTLD_GLOBAL | RTLD_NOLOAD);
}

/*
 * cffi would start Python as the process finds it: by PATH, PYTHONHOME and PYTHONPATH, with the
 * packages of the base installation before those of the environment, and would end the process if
 * that fails.
 */
const char *bn_interpreter_start(const char *program)
{
    PyConfig config;
    struct sigaction interrupt;
    if (Py_IsInitialized())
        return NULL;
    share_symbols();
    PyConfig_InitIsolatedConfig(&config);
    config.install_signal_handlers = 0;
    PyStatus status = PyConfig_SetBytesString(&config, &config.program_name, program);
    if (!PyStatus_Exception(status))
        status = Py_InitializeFromConfig(&config);
    PyConfig_Clear(&config);
    if (PyStatus_Exception(status))
        return status.err_msg ? status.err_msg : "Python asked to exit";
    /* Whoever imports this first takes SIGINT from the program, whatever the configuration says. */
    sigaction(SIGINT, NULL, &interrupt);
    PyObject *module = PyImport_ImportModule("_signal");
    Py_XDECREF(module);
    if (!module)
        PyErr_Clear();
    sigaction(SIGINT, &interrupt, NULL);
    PyEval_SaveThread(); /* the calls that need the interpreter's lock take it by themselves */
    return NULL;
}

int bn_interpreter_held(void)
{
    return Py_IsInitialized() && PyGILState_Check();
}
