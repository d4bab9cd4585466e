"""Processes that share the work of a sky."""

from __future__ import annotations

import concurrent.futures
import multiprocessing
import os
import threading
from collections.abc import Callable
from typing import Any


def process_pool(
    workers: int, start: Callable[..., None] | None = None, *arguments: Any
) -> concurrent.futures.Executor:
    """Processes that end with this one, also where it is killed; each first calls `start(*arguments)`."""
    # spawn: a process that forks while its libraries run threads may hang.
    context = multiprocessing.get_context("spawn")
    return concurrent.futures.ProcessPoolExecutor(workers, context, _begin, (start, arguments))


def _begin(start: Callable[..., None] | None, arguments: tuple) -> None:
    threading.Thread(target=_end_with_parent, daemon=True).start()
    if start is not None:
        start(*arguments)


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)  # it was killed: nobody will ever ask for more
