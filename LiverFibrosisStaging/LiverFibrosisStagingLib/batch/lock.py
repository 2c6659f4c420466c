"""Locks of files that end with the process that holds them, however it ends."""

import errno
import os
from typing import BinaryIO

_FAR = 1 << 30  # on Windows, a locked byte cannot be read by others
_HELD = (errno.EACCES, errno.EAGAIN, errno.EDEADLK)


class Locked(Exception):
    """Another process, or another part of this one, holds the lock."""


def lock(file: BinaryIO) -> bool:
    """Lock an open file until it is closed; False on a file system without locks.

    Raises Locked.
    """
    try:
        if os.name == "nt":
            import msvcrt

            file.seek(_FAR)
            msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
        else:
            import fcntl

            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in _HELD:
            raise Locked from None
        return False
    return True
