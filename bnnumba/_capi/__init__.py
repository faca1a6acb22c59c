"""What the C libraries are made of: entry points of the kernels, and the side of Python in C.

An installed package also carries the header and the libraries here; ``python -m bnnumba config``
tells where.
"""
