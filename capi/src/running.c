/* Streaming moments: handles, and their format as bytes. */

#include <stdlib.h>
#include <string.h>

#include "internal.h"

/*
 * A handle is the number of a slot and the slot's generation, dressed up as a pointer: it is looked
 * up, never followed, so that a stale one is recognized. All slots are behind one lock, which is
 * held only while c numbers are merged or copied.
 */
typedef struct slot {
    uint64_t generation; /* odd while the slot is in use */
    uint32_t next;       /* of a free slot: the next free one, slot_count behind the last */
    int64_t c, count;
    double *mean, *m2, *rest; /* one allocation; what rounding leaves of the mean is in `rest` */
} slot;

enum { SLOT_BITS = 24 };
static slot *slots;
static uint32_t slot_count;
static uint32_t first_free; /* of a list: a search would take longer the more handles there are */

static bnnumba_status find(const char *name, const bnnumba_running *handle, slot **slot_out)
{
    uint64_t id = (uint64_t)(uintptr_t)handle;
    uint32_t index = (uint32_t)(id & ((1u << SLOT_BITS) - 1));
    uint64_t generation = id >> SLOT_BITS;
    if (!handle)
        return bn_fail(BNNUMBA_ERROR_HANDLE, "%s: expected a handle, got NULL", name);
    if (index >= slot_count || slots[index].generation != generation || !(generation & 1))
        return bn_fail(BNNUMBA_ERROR_HANDLE,
                       "%s: expected a handle in use, got %p, which was destroyed or never made",
                       name, (const void *)handle);
    *slot_out = &slots[index];
    return BNNUMBA_OK;
}

/* Of those that a handle has room for; the one after the last is even, as the first is. */
static uint64_t next_generation(const slot *of)
{
    return (of->generation + 1) & (UINT64_MAX >> SLOT_BITS);
}

/* Make more slots where none is free, which are then the list. Return whether there is memory. */
static int add_slots(void)
{
    uint32_t more = slot_count ? 2 * slot_count : 16;
    slot *grown = more >> SLOT_BITS ? NULL : realloc(slots, more * sizeof *slots);
    if (!grown)
        return 0;
    for (uint32_t i = slot_count; i < more; i++)
        grown[i] = (slot){.next = i + 1};
    slots = grown;
    slot_count = more;
    return 1;
}

/* Make a handle from moments that are checked, 3 * c numbers; NULL stands for none. */
static bnnumba_status make(int64_t c, int64_t count, const double *from,
                           bnnumba_running **handle_out)
{
    double *numbers = calloc(c ? 3 * (size_t)c : 1, sizeof(double));
    if (!numbers)
        return bn_fail(BNNUMBA_ERROR_MEMORY, "cannot allocate moments of %lld channels",
                       (long long)c);
    if (from)
        memcpy(numbers, from, (size_t)c * 24);
    bn_lock();
    if (first_free == slot_count && !add_slots()) {
        bn_unlock();
        free(numbers);
        return bn_fail(BNNUMBA_ERROR_MEMORY, "cannot allocate a handle beside %lu others",
                       (unsigned long)slot_count);
    }
    uint32_t index = first_free;
    slot *made = &slots[index];
    first_free = made->next;
    *made = (slot){next_generation(made), 0, c, count, numbers, numbers + c, numbers + 2 * c};
    uint64_t id = made->generation << SLOT_BITS | index;
    bn_unlock();
    *handle_out = (bnnumba_running *)(uintptr_t)id;
    return BNNUMBA_OK;
}

bnnumba_status bnnumba_running_create(int64_t c, bnnumba_running **handle_out)
{
    batch b = {BNNUMBA_FLOAT64, 1, 8, 1, c, 1};
    TRY(bn_check_extents(&b));
    TRY(bn_check_pointer("handle_out", handle_out, 1, sizeof(void *), 0));
    return make(c, 0, NULL, handle_out);
}

bnnumba_status bnnumba_running_destroy(bnnumba_running *handle)
{
    slot *found = NULL;
    if (!handle)
        return BNNUMBA_OK;
    bn_lock();
    bnnumba_status status = find("handle", handle, &found);
    if (status == BNNUMBA_OK) {
        free(found->mean);
        *found = (slot){.generation = next_generation(found), .next = first_free};
        first_free = (uint32_t)(found - slots);
    }
    bn_unlock();
    return status;
}

/* Find a handle that has `c` channels, as the argument `name` says. */
static bnnumba_status find_with(bnnumba_running *handle, const char *name, int64_t c, slot **found)
{
    TRY(find("handle", handle, found));
    if ((*found)->c != c)
        return bn_fail(BNNUMBA_ERROR_ARGUMENT, "%s: expected %lld channels, got %lld", name,
                       (long long)(*found)->c, (long long)c);
    return BNNUMBA_OK;
}

static bnnumba_status join(slot *into, int64_t count, const double *mean, const double *m2,
                           const double *rest)
{
    return bn_merge(into->c, &into->count, into->mean, into->m2, into->rest, count, mean, m2, rest);
}

/*
 * Get the kernel that `join` needs, before the lock: in libbnnumba_embed that takes the interpreter's
 * lock, and one who has that may wait for ours, to fork.
 */
static bnnumba_status prepare_join(void)
{
    kernel *unused;
    return bn_kernel(KERNEL_join, &unused);
}

bnnumba_status bn_running_update_of(bnnumba_running *handle, const char *channels, const batch *b,
                                    const data *x)
{
    slot *found = NULL;
    workspace w;
    int64_t count;
    bn_lock();
    bnnumba_status status = find_with(handle, channels, b->c, &found);
    bn_unlock();
    TRY(status);
    TRY(prepare_join());
    TRY(bn_reserve(&w, 3 * b->c));
    double *mean = bn_take(&w, b->c), *m2 = bn_take(&w, b->c), *rest = bn_take(&w, b->c);
    status = bn_moments_of(b, x, &count, mean, m2, rest);
    if (status == BNNUMBA_OK) {
        bn_lock();
        status = find_with(handle, channels, b->c, &found); /* it may have gone meanwhile */
        if (status == BNNUMBA_OK)
            status = join(found, count, mean, m2, rest);
        bn_unlock();
    }
    bn_release(&w);
    return status;
}

bnnumba_status bnnumba_running_add(bnnumba_running *handle, int64_t c, int64_t count,
                                   const double *mean, const double *m2)
{
    slot *found = NULL;
    TRY(bn_check_count("count", count));
    TRY(bn_check_count("c", c));
    TRY(bn_check_pointer("mean", mean, c, 8, 0));
    TRY(bn_check_pointer("m2", m2, c, 8, 0));
    TRY(prepare_join());
    bn_lock();
    bnnumba_status status = find_with(handle, "c", c, &found);
    if (status == BNNUMBA_OK)
        status = join(found, count, mean, m2, NULL);
    bn_unlock();
    return status;
}

bnnumba_status bnnumba_running_merge(bnnumba_running *handle, bnnumba_running *other)
{
    slot *to = NULL, *from = NULL;
    workspace w = {.allocated = NULL};
    TRY(prepare_join());
    bn_lock();
    bnnumba_status status = find("handle", handle, &to);
    if (status == BNNUMBA_OK)
        status = find("other", other, &from);
    if (status == BNNUMBA_OK)
        status = find_with(handle, "other", from->c, &to);
    if (status == BNNUMBA_OK)
        status = bn_reserve(&w, 3 * from->c);
    if (status == BNNUMBA_OK) {
        /* A copy, as both may be the same. */
        int64_t c = from->c;
        double *copy = bn_take(&w, 3 * c);
        memcpy(copy, from->mean, (size_t)c * 24);
        status = join(to, from->count, copy, copy + c, copy + 2 * c);
    }
    bn_unlock();
    bn_release(&w);
    return status;
}

bnnumba_status bnnumba_running_read(bnnumba_running *handle, int64_t *channels_out,
                                    int64_t *count_out, double *mean_out, double *m2_out)
{
    spans all = {.count = 0};
    slot *found = NULL;
    TRY(bn_check_pointer("channels_out", channels_out, 1, 8, 1));
    TRY(bn_check_pointer("count_out", count_out, 1, 8, 1));
    TRY(bn_check_pointer("mean_out", mean_out, 1, 8, 1));
    TRY(bn_check_pointer("m2_out", m2_out, 1, 8, 1));
    bn_lock();
    bnnumba_status status = find("handle", handle, &found);
    if (status == BNNUMBA_OK) {
        bn_add_span(&all, "channels_out", channels_out, 8, 1);
        bn_add_span(&all, "count_out", count_out, 8, 1);
        bn_add_span(&all, "mean_out", mean_out, 8 * found->c, 1);
        bn_add_span(&all, "m2_out", m2_out, 8 * found->c, 1);
        status = bn_check_overlap(&all);
    }
    if (status == BNNUMBA_OK) {
        size_t bytes = (size_t)found->c * 8;
        if (channels_out)
            *channels_out = found->c;
        if (count_out)
            *count_out = found->count;
        if (mean_out)
            memcpy(mean_out, found->mean, bytes);
        if (m2_out)
            memcpy(m2_out, found->m2, bytes);
    }
    bn_unlock();
    return status;
}

/*
 * Saved state, all numbers little-endian: 8 bytes of name and version, then c, count, c means, c m2
 * and c rests of means as 64-bit numbers, then the 64-bit FNV-1a hash of all bytes before.
 */
static const unsigned char format[8] = {'b', 'n', 'n', 'u', 'm', 'b', 'a', 2};
enum { FRAME = 8 + 8 + 8 + 8 };

static uint64_t hash(const unsigned char *bytes, size_t count)
{
    uint64_t value = UINT64_C(14695981039346656037);
    for (size_t i = 0; i < count; i++)
        value = (value ^ bytes[i]) * UINT64_C(1099511628211);
    return value;
}

static unsigned char *put(unsigned char *to, uint64_t value)
{
    for (int i = 0; i < 8; i++)
        *to++ = (unsigned char)(value >> 8 * i);
    return to;
}

static uint64_t get(const unsigned char *from)
{
    uint64_t value = 0;
    for (int i = 0; i < 8; i++)
        value |= (uint64_t)from[i] << 8 * i;
    return value;
}

static void write_state(const slot *from, unsigned char *to)
{
    unsigned char *begin = to;
    memcpy(to, format, sizeof format);
    to = put(to + sizeof format, (uint64_t)from->c);
    to = put(to, (uint64_t)from->count);
    for (int64_t i = 0; i < 3 * from->c; i++) {
        uint64_t bits;
        memcpy(&bits, from->mean + i, sizeof bits);
        to = put(to, bits);
    }
    put(to, hash(begin, (size_t)(to - begin)));
}

bnnumba_status bnnumba_running_save(bnnumba_running *handle, void *buffer, size_t capacity,
                                    size_t *size_out)
{
    spans all = {.count = 0};
    slot *found = NULL;
    size_t size = 0;
    TRY(bn_check_pointer("size_out", size_out, 1, sizeof(size_t), 0));
    bn_lock();
    bnnumba_status status = find("handle", handle, &found);
    if (status == BNNUMBA_OK) {
        size = FRAME + (size_t)found->c * 24;
        bn_add_span(&all, "buffer", buffer, (int64_t)(capacity < size ? capacity : size), 1);
        bn_add_span(&all, "size_out", size_out, sizeof *size_out, 1);
        status = bn_check_overlap(&all);
    }
    if (status == BNNUMBA_OK) {
        *size_out = size;
        if (buffer && capacity < size)
            status = bn_fail(BNNUMBA_ERROR_ARGUMENT, "capacity: expected at least %zu bytes, got %zu",
                             size, capacity);
        else if (buffer)
            write_state(found, buffer);
    }
    bn_unlock();
    return status;
}

bnnumba_status bnnumba_running_load(const void *buffer, size_t size, bnnumba_running **handle_out)
{
    const unsigned char *bytes = buffer;
    workspace w;
    TRY(bn_check_pointer("handle_out", handle_out, 1, sizeof(void *), 0));
    TRY(bn_check_pointer("buffer", buffer, 1, 1, 0));
    if (size < FRAME)
        return bn_fail(BNNUMBA_ERROR_STATE, "size: expected at least %d bytes, got %zu; truncated?",
                       FRAME, size);
    if (memcmp(bytes, format, sizeof format - 1))
        return bn_fail(BNNUMBA_ERROR_STATE, "buffer: is no saved state of bnnumba");
    if (bytes[7] != format[7])
        return bn_fail(BNNUMBA_ERROR_STATE, "buffer: expected format version %d, got %d", format[7],
                       bytes[7]);
    uint64_t c = get(bytes + 8), count = get(bytes + 16);
    if (c > (size - FRAME) / 24 || size != FRAME + c * 24)
        return bn_fail(BNNUMBA_ERROR_STATE,
                       "size: expected 32 bytes and 24 for each of %llu channels, got %zu; "
                       "truncated?",
                       (unsigned long long)c, size);
    if (get(bytes + size - 8) != hash(bytes, size - 8))
        return bn_fail(BNNUMBA_ERROR_STATE, "buffer: the checksum is wrong; corrupted?");
    if (count > INT64_MAX)
        return bn_fail(BNNUMBA_ERROR_STATE, "buffer: holds a count that is negative");
    TRY(bn_reserve(&w, 3 * (int64_t)c));
    double *numbers = bn_take(&w, 3 * (int64_t)c);
    for (uint64_t i = 0; i < 3 * c; i++) {
        uint64_t bits = get(bytes + 24 + 8 * i);
        memcpy(numbers + i, &bits, sizeof bits);
    }
    bnnumba_status status = make((int64_t)c, (int64_t)count, numbers, handle_out);
    bn_release(&w);
    return status;
}
