"""What each rank of tests/test_distributed.py does: torchrun tests/distributed_worker.py DIRECTORY.

Every rank saves what it found; the test compares it with what one process finds in the concatenated batch.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
import torch.distributed as dist

from minerlib.distributed import gather, gather_and_mine
from minerlib.losses import triplet_margin
from minerlib.memory import CrossBatchMemory
from minerlib.miners import RandomHard
from minerlib.samplers import MPerClass
from minerlib.strategies import STRATEGIES

ROWS = 61
OPTIONS = {"margin": 0.7, "metric": "euclidean", "seed": 11}
KINDS = ("float64", "float32", "bfloat16", "label sets")


def whole_batch(kind: str) -> tuple[torch.Tensor, torch.Tensor]:
    draw = torch.Generator().manual_seed(1)
    x = torch.randn(ROWS, 6, generator=draw, dtype=torch.float64)
    y = torch.randint(-2, 5, (ROWS,), generator=draw)
    if kind == "label sets":
        return x, torch.rand(ROWS, 4, generator=draw) < 0.3
    return x.to(getattr(torch, kind)), y


def split(world_size: int, share: str) -> list[int]:
    """Where each rank's rows begin, and their end: uneven ones, one rank without any, or all on the last."""
    if share == "uneven":
        return [ROWS * rank * (rank + 1) // (world_size * (world_size + 1)) for rank in range(world_size)] + [
            ROWS
        ]
    if share == "one has none":
        return [0, *[ROWS * rank // world_size for rank in range(2, world_size + 1)], ROWS][: world_size + 1]
    return [0] * world_size + [ROWS]


def run(rank: int, world_size: int) -> dict:
    found: dict = {"triplets": {}, "gradients": {}, "totals": {}}
    for kind in KINDS:
        x, y = whole_batch(kind)
        for share in ("uneven", "one has none", "all on the last"):
            starts = split(world_size, share)
            own = slice(starts[rank], starts[rank + 1])
            for strategy in STRATEGIES if share == "uneven" else ("semi-hard", "batch-hard", "all"):
                rows = x[own].clone().requires_grad_()
                result = gather_and_mine(rows, y[own], strategy, **OPTIONS)
                assert torch.equal(result.embeddings, x)
                assert torch.equal(result.labels, y)
                assert result.first == starts[rank]
                loss = triplet_margin(result.embeddings, result.triplets, 0.7, "euclidean", "sum")
                (loss / max(result.total, 1)).backward()
                key = f"{kind}, {share}, {strategy}"
                found["triplets"][key] = result.triplets
                found["gradients"][key] = rows.grad
                found["totals"][key] = result.total

    memory = CrossBatchMemory(100, 6, RandomHard(2.0, seed=5), dtype=torch.float64)
    x, y = whole_batch("float64")
    starts = split(world_size, "uneven")
    own = slice(starts[rank], starts[rank + 1])
    found["memory"] = [memory(x[own] + step, y[own]).triplets for step in range(3)]
    found["remembered"] = memory.past()

    found["batches"] = list(MPerClass(torch.arange(80) % 8, m=2, batch_size=4, seed=3))
    found["errors"] = errors(rank, world_size)
    return found


def errors(rank: int, world_size: int) -> list[str]:
    """What each rank says where the last one brings something else."""
    odd = rank == world_size - 1
    x, y = torch.randn(4, 3), torch.arange(4)
    bad = torch.full((4, 3), float("nan")) if odd else x
    cases = [
        lambda: gather(x[:, :2] if odd else x, y),
        lambda: gather(x.double() if odd else x, y),
        lambda: gather(x, y.int() if odd else y),
        lambda: gather(x, y[:, None] > 1 if odd else y > 1),
        lambda: gather(x, y[:3] if odd else y),
        lambda: gather("rows" if odd else x, y),
        lambda: gather_and_mine(bad, y % 2, "hard"),
        lambda: gather_and_mine(x, y, "hardest"),
    ]
    said = []
    for case in cases:
        try:
            case()
            said.append("")
        except (TypeError, ValueError) as error:
            said.append(f"{type(error).__name__}: {error}")
    return said


def wrapped(rank: int, world_size: int) -> dict:
    """pytorch-metric-learning's wrapper over its miners and over ours."""
    from pytorch_metric_learning import miners as originals
    from pytorch_metric_learning.utils.distributed import DistributedMinerWrapper

    from minerlib.compat.pytorch_metric_learning import miners

    x, y = whole_batch("float64")
    own = slice(rank * 15, rank * 15 + 15)  # its own gathering wants batches of one size
    found = {}
    for module in (originals, miners):
        for name, options in (
            ("BatchHardMiner", {}),
            ("TripletMarginMiner", {"type_of_triplets": "semihard"}),
            ("MultiSimilarityMiner", {}),
            ("PairMarginMiner", {}),
        ):
            for efficient in (False, True):
                miner = DistributedMinerWrapper(getattr(module, name)(**options), efficient=efficient)
                key = f"{name}, {efficient}"
                found.setdefault(key, []).append(miner(x[own], y[own]))
    return found


def main() -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    rank, world_size = dist.get_rank(), dist.get_world_size()
    found = run(rank, world_size)
    if world_size > 1:
        found["wrapped"] = wrapped(rank, world_size)
    torch.save(found, Path(sys.argv[1]) / f"{world_size}-{rank}.pt")
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
