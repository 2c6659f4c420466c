"""Settings of the whole process that several threads may need at once."""

import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from functools import wraps


def shared(
    setting: Callable[[], AbstractContextManager[None]],
) -> Callable[[], AbstractContextManager[None]]:
    """A context that makes a setting and undoes it: of several threads in it at once, the first
    makes it and the last undoes it.
    """
    lock, made, users = threading.Lock(), ExitStack(), 0

    @wraps(setting)
    @contextmanager
    def entered() -> Iterator[None]:
        nonlocal users
        with lock:
            if users == 0:
                made.enter_context(setting())
            users += 1
        try:
            yield
        finally:
            with lock:
                users -= 1
                if users == 0:
                    made.close()

    return entered
