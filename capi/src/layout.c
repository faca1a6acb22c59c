/* See bnnumba/layout.py for the reasons; both must choose alike for equal results. */

#include <stdlib.h>
#include <string.h>

#include "layout.h"

/* Whether axes, from the outermost in, are one axis with a single stride. */
static int merges(const tensor *t, const int *axes, int count)
{
    for (int i = 0; i + 1 < count; i++) {
        int64_t reach;
        if (__builtin_mul_overflow(t->strides[axes[i + 1]], t->shape[axes[i + 1]], &reach) ||
            t->strides[axes[i]] != reach)
            return 0;
    }
    return 1;
}

static int64_t extent(const tensor *t, const int *axes, int count)
{
    int64_t total = 1;
    for (int i = 0; i < count; i++)
        total *= t->shape[axes[i]];
    return total;
}

/* Whether rows of one channel are short enough to be one row with those of the other channels. */
static int is_short(int64_t channels, int64_t s)
{
    return channels > 1 && s > 1 && s <= SHORT_ROW;
}

static layout make(const tensor *t, int rc, const int *ones, int one_count, const int *outer,
                   int outer_count, int axis, const int *inner, int inner_count)
{
    layout l;
    memset(&l, 0, sizeof l);
    l.rc = rc;
    l.n = extent(t, outer, outer_count);
    l.s = extent(t, inner, inner_count);
    int at = 0;
    for (int i = 0; i < one_count; i++)
        l.order[at++] = ones[i];
    for (int i = 0; i < outer_count; i++)
        l.order[at++] = outer[i];
    l.order[at++] = axis;
    for (int i = 0; i < inner_count; i++)
        l.order[at++] = inner[i];
    return l;
}

int layout_candidates(const tensor *t, int axis, layout found[2])
{
    int ones[MAX_RANK], others[MAX_RANK], one_count = 0, count = 0, made = 0;
    int64_t channels = t->shape[axis];
    for (int a = 0; a < t->rank; a++) {
        if (a == axis)
            continue;
        if (t->shape[a] == 1) {
            ones[one_count++] = a;
            continue;
        }
        int at = count++;
        for (; at > 0 && llabs(t->strides[others[at - 1]]) < llabs(t->strides[a]); at--)
            others[at] = others[at - 1];
        others[at] = a;
    }
    /* The longest inner run of axes that is contiguous makes s; the outer rest must merge to n. */
    for (int cut = 0; cut <= count; cut++) {
        const int *inner = others + cut;
        int inner_count = count - cut;
        int unit = !inner_count || (t->strides[others[count - 1]] == t->itemsize &&
                                    merges(t, inner, inner_count));
        if (unit && merges(t, others, cut)) {
            found[made] = make(t, 0, ones, one_count, others, cut, axis, inner, inner_count);
            if (is_short(channels, found[made].s) &&
                t->strides[axis] == found[made].s * t->itemsize) {
                found[made + 1] = found[made];
                found[made++].rc = 1;
            }
            made++;
            break;
        }
    }
    if ((channels == 1 || t->strides[axis] == t->itemsize) && merges(t, others, count)) {
        found[made++] = make(t, 1, ones, one_count, others, count, axis, NULL, 0);
        /* Rows of one value would waste the vectors: there the channels are the better direction. */
        if (made == 2 && found[0].s < channels) {
            layout first = found[0];
            found[0] = found[1];
            found[1] = first;
        }
    } else if (made == 1 && found[0].s == 1 && channels > 1) {
        made = 0; /* one value per row, and the channels not contiguous: better copied */
    }
    return made;
}

int layout_fits(const layout *l, const tensor *t, int axis)
{
    layout found[2];
    int count = layout_candidates(t, axis, found);
    for (int i = 0; i < count; i++)
        if (l->rc == found[i].rc && l->n == found[i].n && l->s == found[i].s &&
            !memcmp(l->order, found[i].order, (size_t)t->rank * sizeof *l->order))
            return 1;
    return 0;
}

layout layout_nearest(const tensor *t, int axis)
{
    int others[MAX_RANK], count = 0;
    int64_t innermost = INT64_MAX;
    for (int a = 0; a < t->rank; a++) {
        if (llabs(t->strides[a]) < innermost)
            innermost = llabs(t->strides[a]);
        if (a != axis)
            others[count++] = a;
    }
    if (axis == t->rank - 1 || llabs(t->strides[axis]) == innermost)
        return make(t, 1, NULL, 0, others, count, axis, NULL, 0);
    layout l = make(t, 0, NULL, 0, others, axis, axis, others + axis, count - axis);
    l.rc = is_short(t->shape[axis], l.s);
    return l;
}

void layout_strides(const layout *l, const tensor *t, int axis, int64_t *n_stride,
                    int64_t *c_stride)
{
    int at = 0;
    while (l->order[at] != axis)
        at++;
    *c_stride = t->strides[axis];
    /* The axis before may be one of extent 1: then n is 1, and its stride does not matter. */
    *n_stride = at ? t->strides[l->order[at - 1]] : 0;
}
