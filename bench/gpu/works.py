"""What is measured on a GPU: for each row its inputs, our call, the peers' calls, and the check before any
timing.

A check compares our answer on the device with the CPU backend's on the same rows, by exact equality; where
all of it would take the host too long, with the CPU's answer for some of the rows.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Sequence
from dataclasses import KW_ONLY, dataclass, field
from typing import Any

import torch

import minerlib

PML = "pytorch-metric-learning"
MASKED = "torch.cdist and masks"
CDIST = "torch.cdist alone"
PRODUCT = "torch.mm alone"
LOOP = "per-pair loop on the host"
BATCH_HARD = "our batch-hard, replayed"

SAMPLED = 64  # rows that are compared where all are too many
PRODUCT_ROWS = 8192  # rows of a product at a time, so that its result fits


@dataclass(frozen=True)
class Goal:
    """What an H200 is asked to show."""

    text: str
    met: Callable[[dict[str, float], float, int | None], bool]  # ms by name, our pairs a second, extra bytes


@dataclass(frozen=True)
class Work:
    title: str
    inputs: Sequence[Any]  # sets that rotate
    pairs: int
    operations: int
    ours: Callable[[Any], Any]
    check: Callable[[], None]
    peers: dict[str, Callable[[Any], Any]] = field(default_factory=dict)
    _: KW_ONLY
    graph: Callable[[Any], Any] | None = None  # our call in the form that can be captured
    graph_peers: dict[str, Callable[[Any], Any]] = field(default_factory=dict)  # peers that are replayed too
    goals: tuple[Goal, ...] = ()
    left_out: tuple[str, ...] = ()  # peers that cannot take part, with the reason


def faster(peer: str, times: float, ours: str = "ours") -> Goal:
    """By the plain call, or (`ours` = graph) by our call replayed."""
    text = f"{times:g}x {peer}" + (", replayed" if ours == "graph" else "")
    return Goal(text, lambda found, *_: found.get(peer, 0.0) >= times * found.get(ours, float("inf")))


def within(peer: str, times: float) -> Goal:
    return Goal(
        f"within {times:g}x {peer}",
        lambda found, *_: found.get("graph", float("inf")) <= times * found.get(peer, 0.0),
    )


def pair_rate(rate: float) -> Goal:
    return Goal(f"{rate:.1e} pairs/s", lambda _, ours, *__: ours >= rate)


def device_time(milliseconds: float) -> Goal:
    return Goal(
        f"{1e3 * milliseconds:g} us of device time", lambda found, *_: found.get("graph", 1e9) < milliseconds
    )


def extra_memory(megabytes: int) -> Goal:
    return Goal(
        f"{megabytes} MB of extra memory", lambda *found: found[2] is not None and found[2] < megabytes << 20
    )


# ------------------------------------------------------------------ inputs


def batches(
    rows: int, dims: int, classes: int, dtype: torch.dtype, device: torch.device, sets: int
) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Unit rows and their labels, every class of the same size."""
    generator = torch.Generator().manual_seed(rows + dims)
    labels = (torch.arange(rows) % classes).to(device)
    found = []
    for _ in range(sets):
        x = torch.nn.functional.normalize(torch.randn(rows, dims, generator=generator)).to(dtype)
        found.append((x.to(device), labels))
    return found


def packed_codes(rows: int, bits: int, device: torch.device, sets: int) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(rows + bits)
    return [
        torch.randint(0, 256, (rows, bits // 8), generator=generator, dtype=torch.uint8).to(device)
        for _ in range(sets)
    ]


def on_host(*tensors: torch.Tensor) -> tuple[torch.Tensor, ...]:
    return tuple(tensor.cpu() for tensor in tensors)


def same(found: Sequence[torch.Tensor], wanted: Sequence[torch.Tensor]) -> None:
    """Raises where two answers differ in a bit."""
    for ours, theirs in zip(found, wanted, strict=True):
        if not torch.equal(ours.cpu(), theirs.cpu()):
            raise AssertionError("the GPU's answer is not the CPU backend's")


# ------------------------------------------------------------------ mining


def mining(
    title: str,
    strategy: str,
    sets: list[tuple[torch.Tensor, torch.Tensor]],
    margin: float,
    goals: tuple[Goal, ...],
    whole: bool = True,
    **options: Any,
) -> Work:
    """A strategy over a batch. whole: compare every triplet with the CPU's, else those of some anchors."""
    options = {"margin": margin, **options}

    def ours(one: tuple[torch.Tensor, torch.Tensor]) -> Any:
        return minerlib.mine(*one, strategy, **options, backend="triton")

    def padded(one: tuple[torch.Tensor, torch.Tensor]) -> Any:
        return minerlib.mine(*one, strategy, **options, **slots, compact=False, backend="triton")

    def check() -> None:
        x, labels = sets[0]
        found = ours(sets[0])
        if whole:
            same(found, minerlib.mine(*on_host(x, labels), strategy, **options))
            return
        some = torch.arange(0, len(x), max(1, len(x) // SAMPLED))
        x, labels = on_host(x, labels)
        # An anchor among the columns is its own positive at distance 0: never the farthest, nor a negative.
        wanted = minerlib.mine(x[some], labels[some], strategy, reference=x, reference_labels=labels)
        same([column.cpu()[some] for column in found], [some, *wanted[1:]])

    x = sets[0][0]
    peers, left_out = _mining_peers(strategy, len(x), margin)
    per_anchor = strategy == "batch-hard"
    slots = {} if per_anchor else {"slots": pair_count(sets[0][1], options.get("pairs", "ordered"))}
    batch_hard = {
        BATCH_HARD: lambda one: minerlib.mine(*one, "batch-hard", compact=False, backend="triton")
    }  # fmt: skip
    pairs = len(x) ** 2
    return Work(
        title, sets, pairs, 2 * pairs * x.shape[1], ours, check, peers, graph=padded,
        graph_peers={} if per_anchor else batch_hard, goals=goals, left_out=left_out,
    )  # fmt: skip


def pair_count(labels: torch.Tensor, pairs: str) -> int:
    """How many anchor-positive pairs there are."""
    sizes = labels.bincount()
    ordered = int((sizes * (sizes - 1)).sum())
    return ordered if pairs == "ordered" else ordered // 2


def _mining_peers(
    strategy: str, rows: int, margin: float
) -> tuple[dict[str, Callable[[Any], Any]], tuple[str, ...]]:
    peers: dict[str, Callable[[Any], Any]] = {PRODUCT: lambda one: product(one[0])}
    left_out = []
    missing = pml_missing()
    if strategy == "batch-hard" and rows <= 32768:
        peers[MASKED] = lambda one: masked_batch_hard(*one)
        peers[CDIST] = lambda one: torch.cdist(one[0].float(), one[0].float())
    if missing:
        left_out.append(missing)
    elif rows <= 8192:
        from pytorch_metric_learning import miners

        if strategy == "batch-hard":
            hard = miners.BatchHardMiner()
            peers[PML] = lambda one: hard(*one)
        elif strategy == "semi-hard" and rows <= 2048:
            semi = miners.TripletMarginMiner(margin=margin, type_of_triplets="semihard")
            peers[PML] = lambda one: semi(*one)
    return peers, tuple(left_out)


def pml_missing() -> str:
    """Why pytorch-metric-learning cannot take part, or nothing."""
    return "" if importlib.util.find_spec("pytorch_metric_learning") else f"{PML}: not installed"


def product(x: torch.Tensor) -> None:
    """x @ x.T in the rows' own type, some rows at a time where the result would not fit."""
    for first in range(0, len(x), PRODUCT_ROWS):
        torch.mm(x[first : first + PRODUCT_ROWS], x.T)


def masked_batch_hard(x: torch.Tensor, labels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """What people write: all distances, two masks, two searches."""
    distances = torch.cdist(x.float(), x.float())
    alike = labels[:, None] == labels[None, :]
    farthest = distances.masked_fill(~alike, -torch.inf).fill_diagonal_(-torch.inf).argmax(1)
    return farthest, distances.masked_fill(alike, torch.inf).argmin(1)


def jtanet(strategy: str, device: torch.device, rows: int = 256, dims: int = 512) -> Work:
    """JTANet's batch against the selectors that published code loops over."""
    from minerlib.benchmarks import per_pair_loop

    sets = batches(rows, dims, 4, torch.float32, device, 4)
    goals = (faster(LOOP, 1000), faster(LOOP, 1000, "graph"))
    work = mining(f"JTANet batch, {strategy}", strategy, sets, 0.5, goals, pairs="combinations")
    x, labels = on_host(*sets[0])
    select = per_pair_loop.SELECTORS[strategy]
    work.peers[LOOP] = lambda _: per_pair_loop.mine(x, labels, select, 0.5)
    return work


# ------------------------------------------------------------------ search


def nearest(queries: int, database: int, dims: int, k: int, device: torch.device) -> Work:
    sets = [
        (x[:queries], x[queries:]) for x, _ in batches(queries + database, dims, 1, torch.float32, device, 3)
    ]

    def ours(one: tuple[torch.Tensor, torch.Tensor]) -> Any:
        return minerlib.nearest(*one, k, backend="triton")

    def check() -> None:
        x, y = on_host(*sets[0])
        same([column[:SAMPLED] for column in ours(sets[0])], minerlib.nearest(x[:SAMPLED], y, k))

    pairs = queries * database
    peers: dict[str, Callable[[Any], Any]] = {
        "torch.cdist and topk": lambda one: torch.cdist(*one).topk(k, largest=False),
        PRODUCT: lambda one: torch.mm(one[0], one[1].T),
    }
    title = f"nearest {k}, {queries} in {database}"
    return Work(title, sets, pairs, 2 * pairs * dims, ours, check, peers)


def distances(rows: int, dims: int, device: torch.device) -> Work:
    sets = [x for x, _ in batches(rows, dims, 1, torch.float32, device, 3)]

    def ours(x: torch.Tensor) -> Any:
        return minerlib.pairwise_distance(x, backend="triton")

    def check() -> None:
        wanted = minerlib.pairwise_distance(sets[0][:SAMPLED].cpu(), sets[0].cpu())
        same([ours(sets[0])[:SAMPLED]], [wanted])

    peers = {"torch.cdist in float64": lambda x: torch.cdist(x.double(), x.double())}
    return Work(f"distances, N={rows}", sets, rows**2, 3 * rows**2 * dims, ours, check, peers)


def codes(queries: int, database: int, bits: int, k: int, device: torch.device) -> Work:
    """The launcher on tensors: packed codes stay on the device."""
    from tritonkernels import hamming_search

    data = packed_codes(database, bits, device, 1)[0]
    sets = packed_codes(queries, bits, device, 4)

    def check() -> None:
        some = sets[0][: max(1, min(queries, SAMPLED))]
        wanted = minerlib.hamming_search(*on_host(some, data), k)
        same([column[: len(some)] for column in hamming_search.search(sets[0], data, k)], wanted)

    pairs = queries * database
    return Work(
        f"Hamming {bits} bits, {queries} in {database}, k={k}", sets, pairs, pairs * bits // 32,
        lambda x: hamming_search.search(x, data, k), check,
        graph=lambda x: hamming_search.search(x, data, k),
    )  # fmt: skip


# ------------------------------------------------------------------ packed codes, ahead-of-time kernels

TRITON = "the Triton kernels"
POPCOUNTS = "popcounts"
COPY = "a copy of the database"


def cuda_codes(
    queries: int, database: int, bits: int, k: int, device: torch.device, goals: tuple[Goal, ...] = ()
) -> Work:
    """The CUDA launcher on tensors, beside Triton's."""
    from minerlib.backends import _cuda_hamming
    from tritonkernels import hamming_search

    data = packed_codes(database, bits, device, 1)[0]
    sets = packed_codes(queries, bits, device, 4)

    def check() -> None:
        some = sets[0][: max(1, min(queries, SAMPLED))]
        wanted = minerlib.hamming_search(*on_host(some, data), k)
        same([column[: len(some)] for column in _cuda_hamming.search(sets[0], data, k)], wanted)

        if POPCOUNTS in peers:
            found = _cuda_hamming.search(sets[0], data, k, products=False)
            same([column[: len(some)] for column in found], wanted)

    pairs = queries * database
    peers: dict[str, Callable[[Any], Any]] = {TRITON: lambda x: hamming_search.search(x, data, k)}
    if queries == 1:
        peers[COPY] = lambda _: data.clone()
    elif device.type == "cuda" and torch.cuda.get_device_capability(device)[0] in (8, 9):
        peers[POPCOUNTS] = lambda x: _cuda_hamming.search(x, data, k, products=False)
    return Work(
        f"CUDA, Hamming {bits} bits, {queries} in {database}, k={k}", sets, pairs, pairs * bits // 32,
        lambda x: _cuda_hamming.search(x, data, k), check, peers, goals=goals,
    )  # fmt: skip


def cuda_ranking(queries: int, database: int, bits: int, device: torch.device) -> Work:
    """Average precision of whole rankings, ties by index."""
    from minerlib import inputs
    from minerlib.backends import _cuda_ranking, cuda, native
    from tritonkernels import hamming_ranking

    data = packed_codes(database, bits, device, 1)[0]
    sets = packed_codes(queries, bits, device, 4)
    labels = torch.arange(queries) % 10, torch.arange(database) % 10
    relevance = cuda._of_tensors(inputs.relevance(*labels, queries, database))

    def check() -> None:
        some = on_host(sets[0][:SAMPLED], data)
        wanted = native.hamming_average_precision(
            *(side.numpy() for side in some),
            inputs.relevance(labels[0][:SAMPLED], labels[1], len(some[0]), database), database,
        )  # fmt: skip
        found = _cuda_ranking.average_precision(sets[0], data, relevance, database)
        same([found[: len(wanted)]], [torch.from_numpy(wanted)])

    pairs = queries * database
    return Work(
        f"CUDA, average precision, {bits} bits, {queries} in {database}", sets, pairs, pairs * bits // 32,
        lambda x: _cuda_ranking.average_precision(x, data, relevance, database), check,
        {TRITON: lambda x: hamming_ranking.average_precision(x, data, relevance, database)},
    )  # fmt: skip


def cuda_suite(device: torch.device) -> list[Callable[[], Work]]:
    from minerlib.backends import cuda

    if device.type == "cpu" or cuda.reasons_unusable():
        return []
    fast, long = (pair_rate(3e12),), (pair_rate(1.5e12),)
    bandwidth = Goal("70 % of memory bandwidth", lambda found, *_: 2 * 0.7 * found["ours"] <= found[COPY])
    return [
        *(
            lambda bits=bits: cuda_codes(10_000, 10_000_000, bits, 100, device, fast)
            for bits in (64, 128, 256)
        ),
        lambda: cuda_codes(10_000, 10_000_000, 512, 100, device, long),
        lambda: cuda_codes(1, 10_000_000, 64, 100, device),
        lambda: cuda_codes(1, 100_000_000, 64, 100, device, (bandwidth,)),
        lambda: cuda_codes(100, 1_000_000, 64, 100, device),
        lambda: cuda_ranking(10_000, 50_000, 64, device),
    ]


# ------------------------------------------------------------------ the suite


def suite(device: torch.device, tiny: bool) -> list[Callable[[], Work]]:
    """Every row, built when its turn comes so that inputs of one row are held at a time."""
    if tiny:
        small = (6, 2, 3, torch.float32, device, 2)
        return [
            lambda: mining("batch-hard, tiny", "batch-hard", batches(*small), 0.2, (faster(MASKED, 1),)),
            lambda: mining("some anchors, tiny", "batch-hard", batches(*small), 0.2, (), whole=False),
            lambda: mining("semi-hard, tiny", "semi-hard", batches(*small), 0.2, ()),
            lambda: jtanet("hard", device, 5, 3),
            lambda: nearest(2, 9, 3, 2, device),
            lambda: distances(5, 3, device),
            lambda: codes(1, 30, 32, 5, device),
        ]

    def batch_hard(rows: int, dtype: torch.dtype, goals: tuple[Goal, ...], sets: int) -> Work:
        name = f"batch-hard, N={rows}, {str(dtype).removeprefix('torch.')}"
        found = batches(rows, 128, rows // 8, dtype, device, sets)
        return mining(name, "batch-hard", found, 0.2, goals, whole=rows <= 8192)

    def semi_hard() -> Work:
        found = batches(2048, 128, 256, torch.float32, device, 32)
        return mining("semi-hard, N=2048", "semi-hard", found, 0.2, (within(BATCH_HARD, 2),))

    small_goals = (device_time(0.1), faster(PML, 20))
    return [
        lambda: batch_hard(2048, torch.float32, small_goals, 32),
        semi_hard,
        lambda: batch_hard(8192, torch.float32, (), 16),
        lambda: batch_hard(131072, torch.bfloat16, (pair_rate(1.0e12), extra_memory(64)), 4),
        lambda: batch_hard(131072, torch.float32, (pair_rate(0.4e12), extra_memory(64)), 4),
        *(
            lambda strategy=strategy: jtanet(strategy, device)
            for strategy in ("hard", "random-hard", "semi-hard")
        ),
        *(lambda k=k: nearest(10_000, 50_000, 128, k, device) for k in (1, 10, 100)),
        lambda: distances(4096, 128, device),
        *(lambda bits=bits: codes(10_000, 1_000_000, bits, 100, device) for bits in (64, 128, 256, 512)),
        lambda: codes(1, 10_000_000, 64, 100, device),
        *cuda_suite(device),
    ]
