"""Several training processes: started here (`--num-gpus`) or by torchrun, joined by DistributedDataParallel.

Legend: *rank* = number of a process, 0 is the main one, which alone writes files; *world size* = how many there are.
"""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import nn

from deepdisc.errors import InputError


def rank() -> int:
    """Number of this process."""
    return dist.get_rank() if dist.is_initialized() else 0


def world_size() -> int:
    """How many processes train together."""
    return dist.get_world_size() if dist.is_initialized() else 1


def is_main() -> bool:
    """Whether this process writes the files."""
    return rank() == 0


def barrier() -> None:
    """Wait for all processes."""
    if dist.is_initialized():
        dist.barrier()


def sum_over_processes(values: dict[str, float]) -> dict[str, float]:
    """Add up numbers over all processes; a process may lack some of them, or all."""
    total: dict[str, float] = {}
    for part in gather_objects(values):
        for name, value in part.items():
            total[name] = total.get(name, 0.0) + value
    return total


def gather_objects(value: Any) -> list[Any]:
    """The value of every process, in the order of their ranks."""
    if world_size() == 1:
        return [value]
    values = [None] * world_size()
    dist.all_gather_object(values, value)
    return values


def wrap(model: nn.Module, device: torch.device) -> nn.Module:
    """Make the model share its gradients with the other processes; itself when there are none."""
    if world_size() == 1:
        return model
    devices = [device.index] if device.type == "cuda" else None
    # A batch without any labelled object leaves the measurement heads without gradient.
    return nn.parallel.DistributedDataParallel(model, device_ids=devices, find_unused_parameters=True)


def unwrap(model: nn.Module) -> nn.Module:
    """The model itself."""
    return model.module if isinstance(model, nn.parallel.DistributedDataParallel) else model


def under_torchrun() -> bool:
    """Whether torchrun (or another launcher that sets its variables) started this process."""
    return {"RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR"} <= set(os.environ)


@contextlib.contextmanager
def joined(device: str) -> Iterator[torch.device]:
    """Join the process group that torchrun's variables describe, if any; yield this process's device."""
    if not under_torchrun():
        yield torch.device(device)
        return
    local = torch.device(device)
    if local.type == "cuda":
        local = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
        torch.cuda.set_device(local)
    dist.init_process_group("nccl" if local.type == "cuda" else "gloo")
    try:
        yield local
    finally:
        dist.destroy_process_group()


def launch(function: Callable[..., Any], num_processes: int, device: str, arguments: tuple) -> None:
    """Run `function(*arguments)` in `num_processes` new processes that `joined` joins.

    Raises:
        InputError: more GPUs are asked for than there are; or the InputError of any of the processes.
    """
    if torch.device(device).type == "cuda" and num_processes > torch.cuda.device_count():
        raise InputError(f"--num-gpus {num_processes}: this machine has {torch.cuda.device_count()}")
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        port = probe.getsockname()[1]
    messages = mp.get_context("spawn").SimpleQueue()
    try:
        mp.spawn(_process, (function, num_processes, port, messages, arguments), nprocs=num_processes)
    except mp.ProcessRaisedException:
        if messages.empty():
            raise
        raise InputError(messages.get()) from None


def _process(local: int, function: Callable, count: int, port: int, messages: Any, arguments: tuple) -> None:
    os.environ.update(RANK=str(local), LOCAL_RANK=str(local), WORLD_SIZE=str(count))
    os.environ.update(MASTER_ADDR="localhost", MASTER_PORT=str(port))
    try:
        function(*arguments)
    except InputError as error:
        messages.put(str(error))
        raise
