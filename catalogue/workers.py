"""A function over many tasks in several processes, the results in the order of the tasks."""

import multiprocessing
import os
import signal
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from itertools import islice

INTERRUPTS = {getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)}


class WorkerDied(RuntimeError):
    """A worker process was ended from outside."""

    exit_code = 3


def cores() -> int:
    """CPU cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def ordered(function: Callable, tasks: Iterable, workers: int) -> Iterator[tuple]:
    """(task, function(task)) for each task, computed in `workers` processes; 1: in this one.

    At most three tasks a worker are in memory. Processes are spawned, as on Windows, so `function`, tasks and results
    must be picklable. Raises what `function` raises, and `WorkerDied`.
    """
    if workers == 1:
        yield from ((task, function(task)) for task in tasks)
        return
    tasks, waiting = iter(tasks), deque()
    pool = ProcessPoolExecutor(workers, multiprocessing.get_context("spawn"), initializer=_as_worker)
    try:
        while True:
            for task in islice(tasks, 3 * workers - len(waiting)):
                with interrupts_held():  # the first task starts the processes, which inherit it
                    waiting.append((task, pool.submit(function, task)))
            if not waiting:
                return
            task, future = waiting.popleft()
            yield task, future.result()
    except BrokenProcessPool:
        raise WorkerDied(
            "A worker process was ended from outside, mostly for want of memory. Try again with --workers 1."
        ) from None
    finally:
        pool.shutdown(cancel_futures=True)


def _as_worker() -> None:
    """Ctrl-C is for the parent, which ends its workers; and a parent that was killed takes them along."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if hasattr(signal, "pthread_sigmask"):
        signal.pthread_sigmask(signal.SIG_UNBLOCK, INTERRUPTS)  # inherited from `interrupts_held`
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    multiprocessing.parent_process().join()
    os._exit(1)


@contextmanager
def interrupts_held() -> Iterator[None]:
    """What interrupts waits until the block is left: the start of a process, an import of C code that would turn the
    exception into another one; processes started in it never get a Ctrl-C (POSIX)."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    came, handlers = [], {number: signal.getsignal(number) for number in INTERRUPTS}
    handlers = {number: handler for number, handler in handlers.items() if handler not in (signal.SIG_IGN, None)}
    for number in handlers:  # for the mask alone does not hold it: another thread may be given the signal
        signal.signal(number, lambda number, frame: came.append(number))
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, INTERRUPTS) if hasattr(signal, "pthread_sigmask") else None
    try:
        yield
    finally:
        if mask is not None:
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        for number, handler in handlers.items():
            signal.signal(number, handler)
        if came:
            signal.raise_signal(came[0])
