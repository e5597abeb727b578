"""Cross-batch memory: what is remembered, in which order, and what is mined against it."""

from __future__ import annotations

import copy
import io

import pytest
import torch

import minerlib
from minerlib import miners
from minerlib.losses import triplet_margin
from minerlib.memory import CrossBatchMemory


def batches(sizes, dimension=5, classes=4, seed=0):
    draw = torch.Generator().manual_seed(seed)
    for size in sizes:
        yield torch.randn(size, dimension, generator=draw), torch.randint(0, classes, (size,), generator=draw)


class Plain:
    """The same as a list of rows."""

    def __init__(self, size: int) -> None:
        self.size, self.rows, self.labels = size, [], []

    def add(self, x, y) -> None:
        self.rows = (self.rows + list(x))[-self.size :]
        self.labels = (self.labels + list(y))[-self.size :]

    def joined(self, x, y):
        return torch.stack([*x, *self.rows]), torch.stack([*y, *self.labels])


@pytest.mark.parametrize("size", [1, 7, 16, 20, 100])
@pytest.mark.parametrize(
    "miner",
    [
        miners.BatchHard(), miners.EasyPositive(metric="cosine"), miners.SemiHard(3.0),
        miners.Assorted(seed=2), miners.Hard(1.0), miners.BatchAll(1.0), miners.DistanceWeighted(),
        miners.Hard(1.0, pairs="combinations"),
    ],
)  # fmt: skip
def test_it_is_the_list_it_stands_for_round_every_wrap(size, miner):
    """Triplets are those of the batch's anchors when batch and memory are mined as one set."""
    memory, plain = CrossBatchMemory(size, 5, copy.copy(miner)), Plain(size)
    other = copy.copy(miner)
    for x, y in batches([6, 8, 8, 5, 30, 8, 1, 16]):
        found = memory(x, y)
        rows, labels = plain.joined(x, y)
        assert torch.equal(found.embeddings, rows)
        assert torch.equal(found.labels, labels)
        whole = minerlib.mine(rows, labels, miner.strategy, **other.options())
        other.calls += 1
        mine = whole.anchors < len(x)
        for got, expected in zip(found.triplets, whole, strict=True):
            assert torch.equal(got, expected[mine])
        assert found.first == 0
        assert found.total == len(found.triplets.anchors)
        plain.add(x, y)
        assert len(memory) == len(plain.rows) <= size
        past, past_labels = memory.past()
        assert torch.equal(past, torch.stack(plain.rows))
        assert torch.equal(past_labels, torch.stack(plain.labels))


def test_a_row_is_never_its_own_positive_but_its_duplicate_may_be():
    memory = CrossBatchMemory(10, 2, miners.EasyPositive())
    x, y = torch.tensor([[0.0, 0.0], [3.0, 0.0], [9.0, 9.0]]), torch.tensor([0, 0, 1])
    first = memory(x, y).triplets
    assert first.anchors.tolist() == [0, 1]
    assert first.positives.tolist() == [1, 0]
    again = memory(x, y).triplets  # its copy of the last batch is another sample's row, at distance 0
    assert again.positives.tolist() == [3, 4, 5]
    assert (again.positives != again.anchors).all()


def test_gradients_reach_the_batch_and_not_the_past():
    memory = CrossBatchMemory(64, 5, miners.BatchHard())
    for x, y in batches([12, 12]):
        memory(x.requires_grad_(), y)
    assert not memory.rows.requires_grad
    x, y = next(batches([12], seed=5))
    x.requires_grad_()
    found = memory(x, y)
    triplet_margin(found.embeddings, found.triplets, 1.0).backward()
    expected = x.detach().clone().requires_grad_()
    rows = torch.cat((expected, memory.past()[0][:24]))
    triplet_margin(rows, found.triplets, 1.0).backward()
    assert torch.equal(x.grad, expected.grad)
    assert x.grad.abs().sum() > 0


def test_a_run_goes_on_from_its_state():
    data = list(batches([9] * 8))
    memory = CrossBatchMemory(20, 5, miners.RandomHard(2.0, seed=3))
    for x, y in data[:4]:
        memory(x, y)
    buffer = io.BytesIO()
    torch.save(memory.state_dict(), buffer)
    buffer.seek(0)
    resumed = CrossBatchMemory(20, 5, miners.RandomHard(2.0, seed=3))
    resumed.load_state_dict(torch.load(buffer, weights_only=True))
    for x, y in data[4:]:
        one, other = memory(x, y), resumed(x, y)
        assert torch.equal(one.embeddings, other.embeddings)
        assert all(torch.equal(a, b) for a, b in zip(one.triplets, other.triplets, strict=True))
        assert len(one.triplets.anchors) > 0
    with pytest.raises(RuntimeError, match="size mismatch"):
        CrossBatchMemory(21, 5).load_state_dict(memory.state_dict())


def test_remembering_can_be_left_out_and_undone():
    memory = CrossBatchMemory(20, 5)
    (x, y), (z, w) = batches([6, 6])
    memory(x, y)
    memory(z, w, remember=False)
    assert len(memory) == 6
    assert torch.equal(memory.past()[0], x)
    memory.reset()
    assert len(memory) == 0
    assert torch.equal(memory(x, y).embeddings, x)


def test_label_sets_and_other_types():
    memory = CrossBatchMemory(12, 4, miners.SemiHardNearest(), label_width=3, dtype=torch.float64)
    draw = torch.Generator().manual_seed(1)
    for _ in range(4):
        x, y = torch.randn(7, 4, generator=draw).bfloat16(), torch.rand(7, 3, generator=draw) < 0.4
        found = memory(x, y)
        assert found.embeddings.dtype == torch.bfloat16
        a, p, n = found.triplets
        assert (found.labels[a] & found.labels[p]).any(1).all()
        assert not (found.labels[a] & found.labels[n]).any(1).any()
    assert len(a) > 0
    single = CrossBatchMemory(12, 5)
    for x, y in batches([5, 5]):
        assert single(x, y.to(torch.uint8)).labels.dtype == torch.int64


def test_rows_that_are_not_finite_are_refused_and_forgotten():
    memory = CrossBatchMemory(12, 5)
    (x, y), (z, w) = batches([5, 5])
    memory(x, y)
    z[2, 1] = float("nan")
    with pytest.raises(ValueError, match="row 2 holds NaN"):
        memory(z, w)
    assert torch.equal(memory.past()[0], x)
    assert memory.miner.calls == 1


def small(**options) -> CrossBatchMemory:
    return CrossBatchMemory(**{"size": 3, "dimension": 3, **options})


NO_LABELS = torch.zeros(2, dtype=torch.long)


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: small(size=0), ValueError, "^size: "),
        (lambda: small(dimension=0), ValueError, "^dimension: "),
        (lambda: small(miner="hard"), TypeError, "^miner: .* got str"),
        (lambda: small(miner=miners.Hard(compact=False)), ValueError, "^miner: .*compact"),
        (lambda: small(dtype=torch.int32), TypeError, "^dtype: "),
        (lambda: small(label_width=0), ValueError, "^label_width: "),
        (lambda: small()(torch.zeros(2, 4), NO_LABELS), ValueError, r"^embeddings: .*\[2, 4\]"),
        (lambda: small()(torch.zeros(3, 3), NO_LABELS), ValueError, r"^labels: .*\[3\], got \[2\]"),
        (lambda: small()(torch.zeros(2, 3), NO_LABELS.float()), TypeError, "^labels: .*float32"),
        (lambda: small()([[0.0]], NO_LABELS), TypeError, "^embeddings: .* got list"),
    ],
)
def test_wrong_arguments_are_named(make, error, message):
    with pytest.raises(error, match=message):
        make()


def test_it_shows_what_it_is():
    assert "CrossBatchMemory(8, 3, Hard(metric=" in repr(CrossBatchMemory(8, 3, miners.Hard()))
