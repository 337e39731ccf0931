"""The C library's heap in training: what a step frees, the next one takes.

A step's tensors are of megabytes, and glibc gives such back to the system as soon as they are freed; the next step then
has them anew, page by page, each a fault and zeroed. Of the 12.2 M model of `bench.train` these are 90,000 faults a
step, and 13 % of its processor time (2.93 s, and 2.55 without, of one core).
"""

import ctypes
import platform
from functools import cache

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # malloc.h
_LARGEST = 2**30  # bytes up to which blocks are the heap's


@cache
def keep_freed() -> bool:
    """From now on this process keeps the memory that it frees for itself. False: its C library has no such setting
    (only glibc has), and all stays as it is. Where batches are of many lengths the blocks of one don't all fit the next
    one's, and the peak was a tenth higher (1,351 MB and 1,241); with equal ones it wasn't (1,142 and 1,179)."""
    if platform.libc_ver()[0] != "glibc":
        return False
    mallopt = ctypes.CDLL(None).mallopt
    return bool(mallopt(_MMAP_THRESHOLD, _LARGEST)) and bool(mallopt(_TRIM_THRESHOLD, -1))
