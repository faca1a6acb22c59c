/* The library says which version it is, and what its statuses mean, without computing anything. */

#include "check.h"

int main(void)
{
    char text[32];
    CHECK(bnnumba_version() == BNNUMBA_VERSION);
    snprintf(text, sizeof text, "%d.%d.%d", BNNUMBA_VERSION_MAJOR, BNNUMBA_VERSION_MINOR,
             BNNUMBA_VERSION_PATCH);
    CHECK(!strcmp(bnnumba_version_string(), text));
    CHECK(!strcmp(bnnumba_last_error(), ""));

    for (int a = BNNUMBA_OK; a <= BNNUMBA_ERROR_PYTHON; a++)
        for (int b = BNNUMBA_OK; b < a; b++)
            CHECK(strcmp(bnnumba_status_string((bnnumba_status)a),
                         bnnumba_status_string((bnnumba_status)b)));
    CHECK(!strcmp(bnnumba_status_string((bnnumba_status)99), "unknown status"));
    CHECK(!strcmp(bnnumba_status_string((bnnumba_status)-1), "unknown status"));

    CHECK_OK(bnnumba_init());
    CHECK(strcmp(bnnumba_isa(), "none"));
    return 0;
}
