"""One function over many jobs in worker processes of one thread each, whatever a job does to its worker."""

import os
import signal
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from multiprocessing import connection, forkserver, get_context, parent_process, resource_tracker
from typing import TypeVar

import SimpleITK as sitk

from dsan_daemon.processes import HUGE_PAGES, signals_held

J = TypeVar("J")
R = TypeVar("R")

WORKER_ENVIRONMENT = {
    **dict.fromkeys(("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS"), "1"),
    **HUGE_PAGES,
}


class WorkerDied:
    """The result of a job that takes its process down each time: a crash in a decoder, no memory left."""


def parallel_map(
    function: Callable[[J], R], jobs: Iterable[J], workers: int
) -> Generator[tuple[J, R | WorkerDied], None, None]:
    """Every job with its result, as they come.

    `function` is a module's, and jobs and results can be pickled. If a worker dies, each job that was in work
    is tried once more by itself, so that one bad job costs nobody else. Workers end when this process does.
    """
    waiting = deque(jobs)
    while waiting:
        suspects = yield from _run_pool(function, waiting, workers)
        for suspect in suspects:
            if (yield from _run_pool(function, deque([suspect]), 1)):
                yield suspect, WorkerDied()


def _run_pool(
    function: Callable[[J], R], waiting: deque[J], workers: int
) -> Generator[tuple[J, R | WorkerDied], None, list[J]]:
    """Empty the queue; if a worker dies, stop and return the jobs that were in work."""
    pool = _pool(workers)
    running: dict[Future[R], J] = {}
    try:
        while waiting or running:
            while waiting and len(running) < 2 * workers:  # one in work, one at hand
                with signals_held(signal.SIGINT):  # a worker half started would end with a traceback
                    future = pool.submit(function, waiting[0])
                running[future] = waiting.popleft()  # after submit: that raises if a worker has died
            finished, _ = wait(running, return_when=FIRST_COMPLETED)
            for future in finished:
                result = future.result()
                yield running.pop(future), result
    except BrokenProcessPool:
        return list(running.values())
    finally:
        pool.shutdown(cancel_futures=True)
    return []


def _pool(workers: int) -> ProcessPoolExecutor:
    """Workers forked from a process that has this module's imports, but no threads and no locks of ours."""
    context = get_context("forkserver")
    context.set_forkserver_preload(["client.preparation", "highdicom.spatial"])
    resource_tracker.ensure_running()  # before: it lets go of the signals that it holds
    with _environment(WORKER_ENVIRONMENT), signals_held(signal.SIGINT):
        forkserver.ensure_running()  # from here on a new pool costs milliseconds
    return ProcessPoolExecutor(workers, mp_context=context, initializer=_begin_worker)


@contextmanager
def _environment(variables: dict[str, str]) -> Iterator[None]:
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def _begin_worker() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all; the parent ends the work in order
    sitk.ProcessObject.SetGlobalDefaultNumberOfThreads(1)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """A worker of a killed parent would wait for its next job for ever."""
    parent = parent_process()
    if parent is not None:
        connection.wait([parent.sentinel])
        os._exit(1)
