/* Versions, status strings and the text of the last error; none of it computes. */

#include <stdarg.h>
#include <stdio.h>

#include "internal.h"

static __thread char last_error[512];

#define QUOTED(value) #value
#define TEXT(value) QUOTED(value)

int bnnumba_version(void)
{
    return BNNUMBA_VERSION;
}

const char *bnnumba_version_string(void)
{
    return TEXT(BNNUMBA_VERSION_MAJOR) "." TEXT(BNNUMBA_VERSION_MINOR) "." TEXT(
        BNNUMBA_VERSION_PATCH);
}

const char *bnnumba_status_string(bnnumba_status status)
{
    switch (status) {
    case BNNUMBA_OK: return "success";
    case BNNUMBA_ERROR_ARGUMENT: return "invalid argument";
    case BNNUMBA_ERROR_DTYPE: return "unsupported dtype or layout";
    case BNNUMBA_ERROR_OVERLAP: return "overlapping buffers";
    case BNNUMBA_ERROR_MEMORY: return "out of memory";
    case BNNUMBA_ERROR_HANDLE: return "invalid handle";
    case BNNUMBA_ERROR_STATE: return "invalid saved state";
    case BNNUMBA_ERROR_UNSUPPORTED: return "unsupported CPU or device";
    case BNNUMBA_ERROR_PYTHON: return "error in Python";
    }
    return "unknown status";
}

const char *bnnumba_last_error(void)
{
    return last_error;
}

bnnumba_status bn_fail(bnnumba_status status, const char *format, ...)
{
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(last_error, sizeof last_error, format, arguments);
    va_end(arguments);
    return status;
}
