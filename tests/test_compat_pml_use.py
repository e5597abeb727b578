"""pytorch-metric-learning's miners and ours in use: random draws, its memory, whole scripts, messages."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from pytorch_metric_learning import distances, losses
from pytorch_metric_learning import miners as originals

from minerlib.backends import native
from minerlib.compat.pytorch_metric_learning import miners
from tests.test_compat_pml import batch, served


def test_distance_weighted_draws_the_originals_distribution():
    """Chi-square of 4000 draws of one anchor's negatives against the weights, ours and theirs."""
    draw = np.random.default_rng(2)
    x = torch.nn.functional.normalize(torch.from_numpy(draw.normal(size=(14, 5))))
    y = torch.tensor([0] * 4 + [1] * 4 + [2] * 6)
    d = distances.LpDistance()(x)[0].clamp(min=0.5).numpy()
    weight = d**-3.0 * (1 - d * d / 4) ** -1.0 * (d < 1.4) * (y != 0).numpy()
    expected = weight / weight.sum()
    assert (expected > 0).sum() >= 4
    for module in (miners, originals):
        torch.manual_seed(3)
        miner = module.DistanceWeightedMiner()
        negatives, positives = np.zeros(14), np.zeros(14)
        for _ in range(1000):
            a, p, n = miner(x, y)
            assert (y[a] == y[p]).all()
            assert (a != p).all()
            assert (y[a] != y[n]).all()
            negatives += np.bincount(n[a == 0], minlength=14)
            positives += np.bincount(p[a == 0], minlength=14)
        assert negatives.sum() == positives.sum() == 4000  # as many as its class has rows, each time
        assert (negatives[expected == 0] == 0).all()
        seen = expected > 0
        chi = ((negatives - 4000 * expected)[seen] ** 2 / (4000 * expected[seen])).sum()
        assert chi < 40, module  # at most 9 degrees of freedom: less than one in 100,000
        chi = ((positives[1:4] - 4000 / 3) ** 2 / (4000 / 3)).sum()
        assert chi < 25, module


def test_distance_weighted_counts_and_eligibility():
    theirs, ours = originals.DistanceWeightedMiner(0.4, 1.2), miners.DistanceWeightedMiner(0.4, 1.2)
    for seed in range(100):
        x, y = batch(seed)
        arguments = (x, y) if seed % 2 else (x, y, x.clone(), y.clone())
        a, p, n = served(ours, *arguments)
        expected = theirs(*arguments)[0]
        assert torch.bincount(a, minlength=len(x)).equal(torch.bincount(expected, minlength=len(x))), seed
        assert (y[a] == y[p]).all()
        assert (y[a] != y[n]).all()
        assert (distances.LpDistance()(x)[a, n] < 1.2 + 1e-9).all()


def test_distance_weighted_repeats_with_torchs_seed_and_survives_high_dimensions():
    x = torch.nn.functional.normalize(torch.randn(64, 1024, generator=torch.Generator().manual_seed(1)))
    x[:16] *= 1.0
    x[16:32] = torch.nn.functional.normalize(x[16:32] + 0.7 * x[:1])  # near rows: weights beyond all others
    y = torch.arange(64) % 8
    miner = miners.DistanceWeightedMiner(nonzero_loss_cutoff=2.0)
    torch.manual_seed(5)
    first = served(miner, x, y)
    torch.manual_seed(5)
    assert all(one.equal(other) for one, other in zip(first, miner(x, y), strict=True))
    assert len(first[0]) == 64 * 8  # no anchor is lost to underflow


# ------------------------------------------------------------------ inside its training code


@pytest.mark.skipif(bool(native.reasons_unusable()), reason="numba's results are NumPy's own")
def test_large_results_keep_their_memory_while_they_are_held():
    """What a result that nobody holds has left is the next one's; what is held is nobody else's."""
    x, y = batch(1, torch.float32, rows=900)
    miner = miners.BatchEasyHardMiner("hard", "all")
    held = served(miner, x, y)
    before, where = held[3].clone(), held[3].data_ptr()
    other = served(miner, x, 1 - y % 2)
    assert other[3].data_ptr() != where
    assert held[3].equal(before)
    freed = {column.data_ptr() for column in held[2:]}
    assert min(column.nbytes for column in held[2:]) > 4 << 20
    del held
    again = served(miner, x, y)
    assert {column.data_ptr() for column in again[2:]} == freed
    assert again[3].equal(before)


def test_under_its_cross_batch_memory():
    torch.manual_seed(0)
    runs = []
    for module in (originals, miners):
        generator = torch.Generator().manual_seed(0)
        memory = losses.CrossBatchMemory(
            losses.ContrastiveLoss(), 8, memory_size=48, miner=module.MultiSimilarityMiner()
        ).double()
        values = []
        for _ in range(6):  # wraps after the third batch
            x = torch.randn(20, 8, generator=generator, dtype=torch.float64, requires_grad=True)
            y = torch.randint(0, 4, (20,), generator=generator)
            loss = memory(x, y)
            loss.backward()
            values += [loss.item(), x.grad.abs().sum().item()]
        runs.append(values)
    assert runs[0] == pytest.approx(runs[1], rel=1e-9)


@pytest.mark.parametrize("name", ["BatchHardMiner", "TripletMarginMiner", "MultiSimilarityMiner"])
def test_under_torch_compile_nothing_of_a_miner_is_traced(name):
    from torch._dynamo.utils import counters

    x, y = batch(3, torch.float32, rows=40)
    miner, loss = getattr(miners, name)(), losses.TripletMarginLoss()
    torch.compiler.reset()
    counters.clear()
    found = torch.compile(lambda rows: miner(2 * rows, y), backend="eager")(x)
    assert counters["stats"]["unique_graphs"] == 1  # the product
    assert miner.fallback_reason == ""
    assert all(one.equal(other) for one, other in zip(found, miner(2 * x, y), strict=True))
    assert loss(x, y, found).isfinite()


SCRIPT = """
import torch
from sklearn.datasets import load_digits
from pytorch_metric_learning import distances, losses, miners, reducers

torch.manual_seed(0)
digits = load_digits()
images = torch.tensor(digits.data[:900], dtype=torch.float32) / 16
labels = torch.tensor(digits.target[:900])
model = torch.nn.Sequential(torch.nn.Linear(64, 64), torch.nn.ReLU(), torch.nn.Linear(64, 16))
optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
distance = distances.CosineSimilarity()
reducer = reducers.ThresholdReducer(low=0)
loss_func = losses.TripletMarginLoss(margin=0.2, distance=distance, reducer=reducer)
mining_func = miners.TripletMarginMiner(margin=0.2, distance=distance, type_of_triplets="semihard")
history = []
for epoch in range(2):
    for rows in torch.randperm(len(images)).split(64):
        optimizer.zero_grad()
        embeddings = model(images[rows])
        indices_tuple = mining_func(embeddings, labels[rows])
        loss = loss_func(embeddings, labels[rows], indices_tuple)
        loss.backward()
        optimizer.step()
        history.append((loss.item(), mining_func.num_triplets))
"""


def test_a_training_script_runs_with_only_its_import_line_changed():
    pytest.importorskip("sklearn", reason="scikit-learn is not installed")
    changed = SCRIPT.replace("from pytorch_metric_learning", "from minerlib.compat.pytorch_metric_learning")
    assert sum(a != b for a, b in zip(SCRIPT.splitlines(), changed.splitlines(), strict=True)) == 1
    runs = []
    for text in (SCRIPT, changed):
        names: dict = {}
        exec(compile(text, "script", "exec"), names)
        runs.append(names)
    before, after = (run["history"] for run in runs)
    assert runs[1]["mining_func"].fallback_reason == ""
    assert type(runs[1]["mining_func"]) is miners.TripletMarginMiner
    assert [t for _, t in after[:3]] == pytest.approx([t for _, t in before[:3]], abs=2)  # the same batches
    triplets = [t for _, t in after]
    assert sum(triplets[-5:]) < 0.8 * sum(triplets[:5])  # it learns


def test_without_the_original_the_message_says_what_to_install(monkeypatch):
    for name in [name for name in sys.modules if name.startswith("minerlib.compat.pytorch_metric")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "pytorch_metric_learning", None)
    with pytest.raises(ImportError, match="pip install"):
        import minerlib.compat.pytorch_metric_learning  # noqa: F401


def test_the_blocks_of_the_migration_page_run():
    page = Path(__file__).parents[1] / "docs" / "migration.md"
    blocks = re.findall(r"^```python\n(.*?)^```", page.read_text(), re.MULTILINE | re.DOTALL)
    assert len(blocks) == 4
    for block in blocks:
        exec(compile(block, str(page), "exec"), {})
