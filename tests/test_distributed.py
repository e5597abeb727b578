"""Mining over ranks: gloo under torchrun on 1, 2 and 4 processes, and no process group at all."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

import minerlib
from minerlib.distributed import gather, gather_and_mine
from minerlib.losses import triplet_margin
from minerlib.miners import RandomHard
from minerlib.samplers import MPerClass
from tests.distributed_worker import KINDS, OPTIONS, ROWS, errors, whole_batch

WORKER = Path(__file__).with_name("distributed_worker.py")
SIZES = (1, 2, 4)

pytestmark = pytest.mark.skipif(
    not (dist.is_available() and dist.is_gloo_available()), reason="this torch is built without gloo"
)


@pytest.fixture(scope="module", params=SIZES)
def ranks(request, tmp_path_factory) -> list[dict]:
    """What every rank of a run found."""
    folder = tmp_path_factory.mktemp(f"ranks-{request.param}")
    command = [
        sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={request.param}",
        str(WORKER), str(folder),
    ]  # fmt: skip
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(WORKER.parent.parent)}
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, env=environment)
    assert done.returncode == 0, done.stderr[-4000:]
    return [
        torch.load(folder / f"{request.param}-{rank}.pt", weights_only=False) for rank in range(request.param)
    ]


def cases(ranks) -> list[str]:
    return list(ranks[0]["triplets"])


def test_all_ranks_together_find_what_one_process_finds(ranks):
    found = 0
    for key in cases(ranks):
        kind, _, strategy = key.split(", ")
        x, y = whole_batch(kind)
        expected = minerlib.mine(x, y, strategy, **OPTIONS)
        together = [
            torch.cat(parts) for parts in zip(*(each["triplets"][key] for each in ranks), strict=True)
        ]
        for got, one in zip(together, expected, strict=True):
            assert torch.equal(got, one), key
        assert {each["totals"][key] for each in ranks} == {len(expected.anchors)}
        found += len(expected.anchors)
    assert found > 10_000
    assert len(cases(ranks)) == len(KINDS) * (13 + 2 * 3)


def test_gradients_flow_back_to_the_rank_of_every_row(ranks):
    for key in cases(ranks):
        kind, _, strategy = key.split(", ")
        x, y = whole_batch(kind)
        x.requires_grad_()
        found = minerlib.mine(x, y, strategy, **OPTIONS)
        loss = triplet_margin(x, found, 0.7, "euclidean", "sum") / max(len(found.anchors), 1)
        loss.backward()
        together = torch.cat([each["gradients"][key] for each in ranks])
        assert len(together) == ROWS
        exact = {"float32": 1e-5, "bfloat16": 2e-2}.get(kind, 1e-12)
        assert torch.allclose(together, x.grad, rtol=exact, atol=exact * float(x.grad.abs().max())), key


def test_memories_agree_and_find_what_one_process_finds(ranks):
    from minerlib.memory import CrossBatchMemory

    alone = CrossBatchMemory(100, 6, RandomHard(2.0, seed=5), dtype=torch.float64)
    x, y = whole_batch("float64")
    for step in range(3):
        expected = alone(x + step, y).triplets
        together = zip(*(each["memory"][step] for each in ranks), strict=True)
        for parts, one in zip(together, expected, strict=True):
            assert torch.equal(torch.cat(parts), one)
        assert len(expected.anchors) > 0
    for each in ranks:
        assert all(torch.equal(a, b) for a, b in zip(each["remembered"], alone.past(), strict=True))


def test_the_sampler_knows_its_rank(ranks):
    size = len(ranks)
    for rank, each in enumerate(ranks):
        alone = MPerClass(torch.arange(80) % 8, m=2, batch_size=4, seed=3, rank=rank, world_size=size)
        assert each["batches"] == list(alone)
    for step in zip(*(each["batches"] for each in ranks), strict=True):
        assert len({sample for batch in step for sample in batch}) == 4 * size


def test_every_rank_hears_of_what_one_does_wrong(ranks):
    size = len(ranks)
    for each in ranks:
        said = each["errors"]
        assert all(said[4:]), said
        assert "ValueError: strategy: expected one of" in said[7]
        assert "NaN" in said[6]
        if size == 1:
            continue
        assert "ValueError: embeddings: expected one number of dimensions on all ranks, got 3, " in said[0]
        assert "ValueError: embeddings: expected one type on all ranks, got torch.float32, " in said[1]
        assert "ValueError: labels: expected one type on all ranks, got torch.int64, " in said[2]
        assert "ValueError: labels: expected one form on all ranks, got -1, " in said[3]
    if size > 1:
        assert f"rank {size - 1} could not take part" in ranks[0]["errors"][4]
        assert "labels: expected 4 rows" in ranks[-1]["errors"][4]
        assert "TypeError: embeddings: expected a torch tensor, got str" in ranks[-1]["errors"][5]


def test_compat_miners_under_the_originals_wrapper(ranks):
    if len(ranks) == 1:
        assert "wrapped" not in ranks[0]  # its wrapper hands the call through then
        return
    for each in ranks:
        assert len(each["wrapped"]) == 8
        for key, (theirs, ours) in each["wrapped"].items():
            groups = [(0, 1, 2)] if len(theirs) == 3 else [(0, 1), (2, 3)]
            for group in groups:
                sets = [{tuple(entry) for entry in torch.stack([out[i] for i in group], 1).tolist()}
                        for out in (theirs, ours)]  # fmt: skip
                assert sets[0] == sets[1], key


def test_without_a_process_group_it_is_one_rank():
    assert not dist.is_initialized()
    x, y = whole_batch("float32")
    x.requires_grad_()
    rows, labels, first = gather(x, y)
    assert rows is x
    assert labels is y
    assert first == 0
    found = gather_and_mine(x, y, "semi-hard", **OPTIONS)
    expected = minerlib.mine(x, y, "semi-hard", **OPTIONS)
    assert all(torch.equal(a, b) for a, b in zip(found.triplets, expected, strict=True))
    assert found.total == len(expected.anchors)
    said = errors(0, 1)
    assert "labels: expected 4 rows" in said[4]
    assert "got str" in said[5]
