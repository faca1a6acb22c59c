/* From shape and strides to a canonical view: bnnumba/layout.py in C. */

#ifndef BNNUMBA_LAYOUT_H
#define BNNUMBA_LAYOUT_H

#include "internal.h"

enum { MAX_RANK = 64 };

/* A tensor as this library sees it: checked, with strides in bytes that are never NULL. */
typedef struct tensor {
    const char *name;
    char *address;
    int rank;
    int64_t itemsize;
    int64_t shape[MAX_RANK], strides[MAX_RANK];
} tensor;

/* A way to see a tensor as a canonical view: an order of its axes, then the extents. */
typedef struct layout {
    int rc;
    int order[MAX_RANK];
    int64_t n, s;
} layout;

/* Write the layouts that need no copy, at most 2, the fastest first, and return their number. */
int layout_candidates(const tensor *t, int axis, layout found[2]);
/* Whether a layout sees a tensor without a copy. */
int layout_fits(const layout *l, const tensor *t, int axis);
/* Return the layout for a copy of a tensor that has none of its own. */
layout layout_nearest(const tensor *t, int axis);
/* The strides of the view of a tensor, in bytes. */
void layout_strides(const layout *l, const tensor *t, int axis, int64_t *n_stride,
                    int64_t *c_stride);

#endif
