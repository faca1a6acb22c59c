"""How sums over the values of channels are kept, and in which order memory is read for them.

In the ncs view each channel has 8 lanes of every sum, in the rc view each column x[r, q] has one
number, and the columns of a channel are added up at the end; rows of few columns that stand side by
side are taken together, as one. Runs of additions are folded into a second level.
"""

from .integers import maximum, minimum
from .jit import inlined
from .lanewise import or_zero
from .memory import adjacent, load_f64, load_f64x16, load_lanes, row_at, store, store_lanes
from .parts import part
from .prefetching import prefetch_distance
from .simd import hsum, splat_f64

# Additions to a sum before it is folded into that of the level above: adding up numbers that are
# alike rounds the same way each time. In sums of 2048 the variance of a channel that is constant
# but for its first values was off by 1e-10, so by 1e-12.
RUN = 64
# Values of a row that are added up to two accumulators of 8 lanes in a run.
SEGMENT = 16 * RUN
# Columns of a row below which several rows are taken as one, whose vectors are full (moments of two
# million rows of 2 columns: 0.16 ms against 1.2, of 3: 0.15 against 0.8; of 37, 4 % longer).
NARROW = 32
# Values of a row up to which two rows are added up at a time: their accumulators are loaded, added
# up and stored once for both (rows of 49: moments 17 % less time, all of backward 7 to 19 %; of
# 128, moments 9 % less, backward 5 % longer).
PAIRED_ROW = 128
# Numbers of workspace: two sums on two levels, and the pivot. Each has 8 lanes per channel in the
# ncs view, a number per column, padded to whole vectors, in the rc view.
WORKSPACE = 5


@inlined
def workspace(x, block, channels):
    """Return how many float64 numbers of workspace the sums of a block of channels take."""
    if x.ndim == 3:
        return WORKSPACE * 8 * block
    columns = block * (x.shape[1] // channels)
    return WORKSPACE * ((columns * rows_in_one(columns) + 7) // 8 * 8)


@inlined
def rows_in_one(columns):
    """Return how many rows of few columns make one that fills vectors."""
    rows = 1
    while 0 < columns < NARROW and (rows * columns < NARROW or rows * columns % 16 != 0):
        rows *= 2
    return rows


@inlined
def rows_together(x, other, rows, columns):
    """Return how many of some rows are taken as one: several where they are short and adjacent.

    Those are rows of x and of another array, and all their columns.
    """
    together = rows_in_one(columns)
    whole = columns == x.shape[1] and adjacent(x) and adjacent(other)
    return together if whole and rows >= 8 * together else 1


@inlined
def fold(work, at, to):
    """Add 16 lanes of sums to those of the level above; what rounding takes from these stays."""
    here, above = load_f64x16(work, at), load_f64x16(work, to)
    total = above + here
    part = total - above
    store(work, to, total)
    store(work, at, or_zero((above - (total - part)) + (here - part)))


@inlined
def rows_at_once(width):
    """Return how many rows of `width` values of a channel are added up at a time."""
    return 2 if width <= PAIRED_ROW else 1


@inlined
def rows_of_run(width):
    """Return how many rows of `width` values of a channel are added up before they are folded.

    A lane of the busiest accumulator takes a value of each 16 in a row, and two more.
    """
    together = rows_at_once(width)
    return maximum(1, RUN // (width // 16 + 2) // together) * together


@inlined
def both_levels(work, width, at):
    """Return the two sums of 8 columns, or channels after `sum_columns`."""
    total = load_f64(work, at) + load_f64(work, 2 * width + at)
    return total, load_f64(work, width + at) + load_f64(work, 3 * width + at)


@part
def sum_columns(work, width, columns, s, together, levels):
    """Add up the sums of the s columns of each channel, and leave them where its number says.

    There are as many for each of the rows that were taken together.
    """
    half = columns * together // 2
    while half >= columns:  # of a power of two; what comes of vectors that reach beyond is not used
        for stretch in range(2 * levels):
            for at in range(stretch * width, stretch * width + half, 8):
                store(work, at, load_f64(work, at) + load_f64(work, at + half))
        half //= 2
    if s > 1:
        for c in range(columns // s):
            total = square = splat_f64(0.0)
            for at in range(c * s, c * s + s, 8):
                live = c * s + s - at
                for level in range(levels):
                    part = at + 2 * level * width
                    total = total + load_lanes(work, part, live)
                    square = square + load_lanes(work, part + width, live)
            work[c], work[width + c] = hsum(total), hsum(square)
            work[2 * width + c] = work[3 * width + c] = 0.0


@inlined
def first_columns(work, begin, size, s):
    """Move the numbers of the first column of each channel to where the channel's number says."""
    if s > 1:
        for c in range(size // s):
            work[begin + c] = work[begin + c * s]


@inlined
def repeat_columns(work, begin, columns, together):
    """Copy numbers of the columns of a row for all rows that are taken together."""
    for k in range(1, together):
        for at in range(0, columns, 8):
            live = columns - at
            store_lanes(work, begin + k * columns + at, live, load_lanes(work, begin + at, live))


@inlined
def next_sweep(x, i, begin, end):
    """Return the row of image i where the sweep over the channels of a block begins.

    Behind the last image that is the next block, in its first images.
    """
    n, channels = x.shape[0], x.shape[1]
    return row_at(x, (i % n, begin if i < n else minimum(end, channels - 1)))


@inlined
def row_group(x, width, whole, arrays):
    """Return how many rows of x[r, q] are taken at a time, and how the next ones are prefetched.

    The accumulators of 16 columns stay in registers for a group of rows. Reading on from row to
    row like that is hard on the prefetchers of the hardware, so that rows of the next group or a
    later one are prefetched in the order of memory (67 MB: 3.6 ms against 7.1, 1024 KB: 32 us
    against 40). A group further than needed would not stay in L1 (26 MB: 7 % longer), of two arrays
    least of all: 8 rows of 2048 columns took a tenth less than 4, of two arrays 4 % more. A run
    has a whole number of groups.

    The numbers are: rows of a group; how many rows on to prefetch; and how many stretches of memory
    those are, one where rows are taken whole, or one for each row.
    """
    distance = prefetch_distance(x)
    group = 8 // arrays
    while 2 * group <= minimum(RUN, 4 + distance // 2 // width):
        group *= 2
    return group, maximum(group, distance // width), 1 if whole else group


@inlined
def row_after(x, i, begin, end):
    """Return row i from the column `begin` on.

    Behind the last one, that is where the next block of columns begins, in its first rows.
    """
    rows, columns = x.shape
    if i < rows:
        return row_at(x, (i, begin))
    return row_at(x, (minimum(i - rows, rows - 1), minimum(end, columns - 1)))
