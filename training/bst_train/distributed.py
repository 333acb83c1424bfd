"""Data parallelism: several processes share the rows of every step.

Processes are started by torchrun (`python3 -m torch.distributed.run --nproc_per_node 2 -m
training.bst_train train ...`) and talk by gloo. All of them deal the same batches, because the
sampler depends on the seed alone; a process computes the rows of the lanes whose number leaves its
rank when divided by the number of processes, so a lane's carried state never moves. The
gradients are added up, and the weights stay equal, as every process makes the same update.

A step is the same function whatever the number of processes: the loss is divided by the tokens of
the whole batch. Only the order of the additions differs.
"""

from __future__ import annotations

import datetime
import os
from typing import Any, Dict, Iterable, List, Sequence

import torch
import torch.distributed as dist
from torch import nn

# The others wait for process 0 while it validates.
_TIMEOUT = datetime.timedelta(hours=4)


class Group:
    """The processes of a run; without torchrun, this one."""

    def __init__(self) -> None:
        self.size = int(os.environ.get("WORLD_SIZE", "1"))
        self.rank = 0
        if self.size > 1:
            dist.init_process_group("gloo", timeout=_TIMEOUT)
            self.rank = dist.get_rank()

    @property
    def is_first(self) -> bool:
        return self.rank == 0

    def check(self, sequences: int, lanes: int) -> None:
        """Raises ValueError unless rows and lanes can be shared out evenly."""
        for name, count in (("sequences", sequences), ("lanes", lanes)):
            if count % self.size != 0:
                raise ValueError(f"{name}: {count} cannot be shared by {self.size} processes")

    def own_rows(self, lanes: Sequence[int]) -> List[int]:
        """This process's rows of a step that reads `lanes`; of all lanes, those whose state it
        keeps. A step's follow on one another, so that every process has as many, wherever a
        resumed run begins in the rotation."""
        return [row for row, lane in enumerate(lanes) if lane % self.size == self.rank]

    def broadcast_parameters(self, parameters: Iterable[torch.Tensor]) -> None:
        """Gives everybody the first process's values."""
        if self.size > 1:
            for parameter in parameters:
                dist.broadcast(parameter.data, 0)

    def add_gradients(self, parameters: Sequence[nn.Parameter]) -> None:
        """Replaces every gradient by the sum over all processes."""
        if self.size == 1:
            return
        gradients = [torch.zeros_like(p) if p.grad is None else p.grad for p in parameters]
        total = torch.cat([g.reshape(-1) for g in gradients])
        dist.all_reduce(total)
        parts = total.split([g.numel() for g in gradients])
        for parameter, part in zip(parameters, parts):
            parameter.grad = part.reshape(parameter.shape).clone()

    def add(self, value: float) -> float:
        """The sum of the processes' values."""
        if self.size == 1:
            return value
        total = torch.tensor(value, dtype=torch.float64)
        dist.all_reduce(total)
        return float(total)

    def agree(self, values: List[float]) -> List[float]:
        """The first process's values."""
        if self.size == 1:
            return values
        agreed = torch.tensor(values, dtype=torch.float64)
        dist.broadcast(agreed, 0)
        return agreed.tolist()

    def collect(self, own: Dict[int, Any]) -> Dict[int, Any]:
        """The processes' entries together, on the first process; the others get their own back."""
        if self.size == 1:
            return own
        parts: List[Any] = [None] * self.size
        dist.gather_object(own, parts if self.is_first else None, 0)
        if not self.is_first:
            return own
        return {key: value for part in parts for key, value in part.items()}
