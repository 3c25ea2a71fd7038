"""How a CPU engine's process holds memory.

glibc gives a large block back to the system as soon as it is freed, and the next forward pass asks
for it again, page by page, zeroed: about a thirtieth of a CPU's time.
"""

import ctypes
from contextlib import suppress

_TRIM_THRESHOLD, _MMAP_MAX = -1, -4  # malloc.h's M_TRIM_THRESHOLD and M_MMAP_MAX


def keep_freed() -> None:
    """Keep what is freed from now on for what is asked for next; without glibc nothing happens."""
    with suppress(OSError, AttributeError):
        library = ctypes.CDLL(None)
        library.mallopt(_MMAP_MAX, 0)
        library.mallopt(_TRIM_THRESHOLD, -1)
