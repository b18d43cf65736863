"""The lock of a command that must be alone in a folder."""

import fcntl
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from client.findings import Finding, FindingError


@contextmanager
def alone(lock: Path, refusal: Finding) -> Iterator[None]:
    """Hold the lock; it ends with this process, however that ends. FindingError `refusal` if it is held."""
    with lock.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise FindingError(refusal) from None
        yield
