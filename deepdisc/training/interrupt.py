"""Ctrl-C during a training: the step in progress is finished first, so that what is then saved resumes exactly."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator

from deepdisc.training import distributed


@contextlib.contextmanager
def interrupt_flag() -> Iterator[threading.Event]:
    """Yield an event that the first SIGINT sets; the second raises KeyboardInterrupt wherever the program is.

    It works where SIGINT was ignored, too, as in a background job of a shell. Outside the main thread, which alone may
    handle signals, and among several processes, which would not stop at the same step, the event stays unset.
    """
    requested = threading.Event()
    if threading.current_thread() is not threading.main_thread() or distributed.world_size() > 1:
        yield requested
        return

    def request(number: int, frame: object) -> None:
        requested.set()
        signal.signal(signal.SIGINT, signal.default_int_handler)

    previous = signal.signal(signal.SIGINT, request)
    try:
        yield requested
    finally:
        # None: a handler that was not installed from Python and cannot be put back
        signal.signal(signal.SIGINT, signal.SIG_DFL if previous is None else previous)
