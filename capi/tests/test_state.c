/* Saved state comes back to the bit; truncated and corrupted state is refused. */

#include "check.h"

enum { C = 3 };

int main(void)
{
    static float x[40 * C];
    double mean[C], m2[C], loaded_mean[C], loaded_m2[C];
    int64_t count, loaded_count, channels;
    unsigned char state[256], other[256];
    size_t size, again;
    bnnumba_running *handle, *loaded = NULL;

    fill(x, COUNT(x), 5);
    CHECK_OK(bnnumba_running_create(C, &handle));
    CHECK_OK(bnnumba_running_update(handle, BNNUMBA_FLOAT32, BNNUMBA_NSC, 40, C, 1, x));
    CHECK_OK(bnnumba_running_read(handle, NULL, &count, mean, m2));
    CHECK_OK(bnnumba_running_save(handle, NULL, 0, &size));
    CHECK(size == 32 + 24 * C);
    CHECK_ERROR(BNNUMBA_ERROR_ARGUMENT, "capacity",
                bnnumba_running_save(handle, state, size - 1, &again));
    CHECK(again == size); /* what is needed, as for no buffer */
    again = 0;
    CHECK_ERROR(BNNUMBA_ERROR_ARGUMENT, "size_out",
                bnnumba_running_save(handle, state, sizeof state, NULL));
    CHECK_OK(bnnumba_running_save(handle, state, sizeof state, &again));
    CHECK(again == size);

    CHECK_OK(bnnumba_running_load(state, size, &loaded));
    CHECK_OK(bnnumba_running_read(loaded, &channels, &loaded_count, loaded_mean, loaded_m2));
    CHECK(channels == C && loaded_count == count);
    CHECK(!memcmp(mean, loaded_mean, sizeof mean) && !memcmp(m2, loaded_m2, sizeof m2));
    CHECK_OK(bnnumba_running_destroy(loaded));

    /* The format is fixed: little-endian, its name and version first. */
    CHECK(!memcmp(state, "bnnumba\2", 8));
    CHECK(state[8] == C && state[16] == 40);

    for (size_t cut = 0; cut < size; cut++)
        CHECK_ERROR(BNNUMBA_ERROR_STATE, "", bnnumba_running_load(state, cut, &loaded));
    CHECK_ERROR(BNNUMBA_ERROR_STATE, "size", bnnumba_running_load(state, size + 1, &loaded));
    for (size_t i = 0; i < size; i++)
        for (int bit = 0; bit < 8; bit++) {
            memcpy(other, state, size);
            other[i] ^= (unsigned char)(1 << bit);
            CHECK_ERROR(BNNUMBA_ERROR_STATE, "", bnnumba_running_load(other, size, &loaded));
        }
    memcpy(other, state, size);
    other[7] = 1;
    CHECK_ERROR(BNNUMBA_ERROR_STATE, "format version 2, got 1",
                bnnumba_running_load(other, size, &loaded));
    CHECK_ERROR(BNNUMBA_ERROR_ARGUMENT, "buffer", bnnumba_running_load(NULL, size, &loaded));
    CHECK_ERROR(BNNUMBA_ERROR_ARGUMENT, "handle_out", bnnumba_running_load(state, size, NULL));
    CHECK_OK(bnnumba_running_destroy(handle));
    return 0;
}
