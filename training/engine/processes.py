"""Meeting the other processes of a run, and parting from them."""

from __future__ import annotations

import os
import socket
from dataclasses import dataclass
from datetime import timedelta

import psutil
import torch
import torch.distributed

from mmsearch_env.errors import ConfigError
from training.engine.library import deepspeed_library


@dataclass(frozen=True, slots=True)
class Place:
    """Where this process stands among the others.

    Attributes:
        rank: 0 .. world_size - 1.
        world_size: processes of the run.
        device: what this process computes on.
    """

    rank: int
    world_size: int
    device: torch.device


def join(*, timeout_s: float = 1800.0) -> Place:
    """Meet the other processes of the run; a process without a launcher is a run of one.

    Raises:
        ConfigError: only some of a launcher's variables are set, or more processes than GPUs were started.
    """
    _fill_launcher_variables()
    gpu = torch.cuda.is_available()
    os.environ.setdefault("DS_ACCELERATOR", "cuda" if gpu else "cpu")
    local_rank = int(os.environ["LOCAL_RANK"])
    if gpu:
        if local_rank >= torch.cuda.device_count():
            raise ConfigError(
                f"expected at most {torch.cuda.device_count()} processes here, one for each GPU, got local rank "
                f"{local_rank}; start fewer (make PROCESSES=1 ...), or hide the GPUs with CUDA_VISIBLE_DEVICES=''"
            )
        torch.cuda.set_device(local_rank)
    else:
        _reach_the_others()
    if not torch.distributed.is_initialized():
        deepspeed = deepspeed_library()
        deepspeed.init_distributed(
            dist_backend="nccl" if gpu else "gloo", timeout=timedelta(seconds=timeout_s), verbose=False
        )
    device = torch.device("cuda", local_rank) if gpu else torch.device("cpu")
    return Place(torch.distributed.get_rank(), torch.distributed.get_world_size(), device)


def wait_for_all() -> None:
    """Return when every process has come here."""
    torch.distributed.barrier()


def leave() -> None:
    """Part from the other processes; the last thing a run does. A later :func:`join` begins anew."""
    if torch.distributed.is_initialized():
        # DeepSpeed's own call: it also forgets the groups it keeps, which a later run in this process would trip over.
        deepspeed_library().comm.destroy_process_group()


def _fill_launcher_variables() -> None:
    needed = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")
    present = [name for name in needed if name in os.environ]
    if present and len(present) < len(needed):
        missing = ", ".join(name for name in needed if name not in present)
        raise ConfigError(
            f"expected all of {', '.join(needed)} or none, got no {missing}; start with torchrun or deepspeed, "
            f"or unset {', '.join(present)}"
        )
    if not present:
        alone = {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0", "MASTER_ADDR": "127.0.0.1"}
        os.environ.update(alone, MASTER_PORT=str(_free_port()))


def _reach_the_others() -> None:
    """Have gloo listen where the first machine is reached from.

    Left to itself it listens where this machine's name points to, on many machines a loopback address that no other
    machine can reach.
    """
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect((os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])))  # sends nothing
        except OSError:
            return  # not by this protocol: meeting the others says what is wrong
        mine = probe.getsockname()[0]
    names = [name for name, held in psutil.net_if_addrs().items() if any(one.address == mine for one in held)]
    if names:
        os.environ.setdefault("GLOO_SOCKET_IFNAME", names[0])


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
