"""What the C library does with memory that is freed."""

from __future__ import annotations

import ctypes
import platform

_TRIM_THRESHOLD, _TOP_PAD, _MMAP_MAX = -1, -2, -4  # of mallopt, from malloc.h


def keep_freed_memory() -> bool:
    """Have glibc keep large blocks that are freed, for the next that ask.

    By default they go back to the system, and every tensor of more than some megabytes is paid for with page
    faults at its first use, and training steps on the CPU allocate the same large tensors over and over. The
    process then holds what it once held at its peak.

    Call it once, before the work: in a command, not on import of a library.

    Returns:
        Whether it took effect; False without glibc.
    """
    if platform.libc_ver()[0] != "glibc":
        return False
    mallopt = ctypes.CDLL(None).mallopt
    settings = {_MMAP_MAX: 0, _TRIM_THRESHOLD: 2**31 - 1, _TOP_PAD: 64 * 2**20}
    # All of them, even where one is refused.
    return all([mallopt(option, value) == 1 for option, value in settings.items()])
