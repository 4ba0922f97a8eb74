"""Work that only one thread of a process does at a time."""

from __future__ import annotations

import threading

from amortopt.system.threads import one_at_a_time


def test_threads_never_run_marked_functions_at_once() -> None:
    running, most, lock = 0, 0, threading.Lock()
    started = threading.Barrier(4)

    @one_at_a_time
    def inner() -> None:
        nonlocal running, most
        with lock:
            running += 1
            most = max(most, running)
        # Any other thread that could enter has the time to.
        threading.Event().wait(0.01)
        with lock:
            running -= 1

    @one_at_a_time
    def outer() -> None:
        inner()  # a marked function may call another one

    def work() -> None:
        started.wait()
        for function in (inner, outer):
            function()

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == 1
