"""The losses as modules: settings once, then `loss(embeddings, labels)` or `loss(embeddings, triplets)`.

A module takes the arguments of its function other than rows, labels and triplets. Wrong ones raise when it is
called. Memory, errors and sources are those of the functions.
"""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from minerlib import inputs
from minerlib.losses import batch, triplet


class _Configured(nn.Module):
    """Keeps its settings as attributes, so that a schedule may change them between calls."""

    def __init__(self, **settings: Any) -> None:
        super().__init__()
        self._names = tuple(settings)
        for name, value in settings.items():
            setattr(self, name, value)

    def settings(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in self._names}

    def extra_repr(self) -> str:
        return ", ".join(f"{name}={value!r}" for name, value in self.settings().items())


class TripletMargin(_Configured):
    """`triplet_margin` of triplets that a miner has found.

    >>> TripletMargin(margin=0.5)(torch.tensor([[0.0], [1.0], [2.0]]), ([0], [2], [1])).item()
    3.5
    """

    def __init__(
        self,
        margin: float = 0.2,
        metric: str = "sqeuclidean",
        reduction: str = "mean",
        backend: str = "auto",
    ) -> None:
        super().__init__(margin=margin, metric=metric, reduction=reduction, backend=backend)

    def forward(self, embeddings: Tensor, triplets: Any, reference: Tensor | None = None) -> Tensor:
        return triplet.triplet_margin(embeddings, triplets, reference=reference, **self.settings())


class DTSH(_Configured):
    """`dtsh`; set `alpha` and `quantization_weight` between epochs for a schedule.

    >>> u = torch.tensor([[1.0, 1.0], [1.0, 1.0], [-1.0, -1.0]])
    >>> round(DTSH(alpha=2.0)(u, ([0], [1], [2])).item(), 4)
    0.6931
    """

    def __init__(
        self,
        alpha: float = 16.0,
        quantization_weight: float = 10.0,
        reduction: str = "mean",
        backend: str = "auto",
    ) -> None:
        super().__init__(
            alpha=alpha, quantization_weight=quantization_weight, reduction=reduction, backend=backend
        )

    def forward(self, embeddings: Tensor, triplets: Any) -> Tensor:
        return triplet.dtsh(embeddings, triplets, **self.settings())


class BatchAll(_Configured):
    """`batch_all`.

    >>> BatchAll(margin=5.0, reduction="sum")(torch.tensor([[0.0], [1.0], [3.0]]), [0, 0, 1]).item()
    2.0
    """

    def __init__(
        self,
        margin: float = 0.2,
        metric: str = "sqeuclidean",
        reduction: str = "mean",
        backend: str = "auto",
    ) -> None:
        super().__init__(margin=margin, metric=metric, reduction=reduction, backend=backend)

    def forward(
        self, embeddings: Tensor, labels: Any, reference: Tensor | None = None, reference_labels: Any = None
    ) -> Tensor:
        return batch.batch_all(
            embeddings, labels, reference=reference, reference_labels=reference_labels, **self.settings()
        )


class NCA(_Configured):
    """`nca`.

    >>> NCA()(torch.tensor([[0.0], [1.0], [3.0]]), [0, 0, 1]).item()
    -5.5
    """

    def __init__(
        self, metric: str = "sqeuclidean", reduction: str = "mean", *, backend: str = "auto"
    ) -> None:
        super().__init__(metric=metric, reduction=reduction, backend=backend)

    def forward(
        self, embeddings: Tensor, labels: Any, reference: Tensor | None = None, reference_labels: Any = None
    ) -> Tensor:
        return batch.nca(
            embeddings, labels, reference=reference, reference_labels=reference_labels, **self.settings()
        )


class ProxyNCA(_Configured):
    """`proxy_nca` with one learned proxy for each of the classes 0 .. classes - 1.

    >>> ProxyNCA(classes=10, dimensions=32).proxies.shape
    torch.Size([10, 32])
    """

    proxies: Tensor  # [classes, dimensions]
    proxy_labels: Tensor  # [classes]

    def __init__(
        self,
        classes: int,
        dimensions: int,
        metric: str = "sqeuclidean",
        reduction: str = "mean",
        *,
        backend: str = "auto",
    ) -> None:
        super().__init__(metric=metric, reduction=reduction, backend=backend)
        self.proxies = nn.Parameter(torch.randn(classes, dimensions) / dimensions**0.5)
        self.register_buffer("proxy_labels", torch.arange(classes), persistent=False)

    def forward(self, embeddings: Tensor, labels: Any) -> Tensor:
        proxies = self.proxies.to(embeddings.dtype)
        return batch.proxy_nca(embeddings, labels, proxies, self.proxy_labels, **self.settings())


class EasyPositive(_Configured):
    """`easy_positive`.

    >>> round(EasyPositive()(torch.tensor([[1.0, 0.0], [2.0, 0.0], [0.0, 1.0]]), [0, 0, 1]).item(), 4)
    0.3133
    """

    def __init__(self, reduction: str = "mean", *, backend: str = "auto") -> None:
        super().__init__(reduction=reduction, backend=backend)

    def forward(
        self, embeddings: Tensor, labels: Any, reference: Tensor | None = None, reference_labels: Any = None
    ) -> Tensor:
        return batch.easy_positive(
            embeddings, labels, reference=reference, reference_labels=reference_labels, **self.settings()
        )


class EasyPositiveDistance(_Configured):
    """`easy_positive_distance`.

    >>> round(EasyPositiveDistance()(torch.tensor([[0.0], [0.0], [1.0]]), [0, 0, 1]).item(), 4)
    0.3133
    """

    def __init__(
        self, metric: str = "sqeuclidean", reduction: str = "mean", *, backend: str = "auto"
    ) -> None:
        super().__init__(metric=metric, reduction=reduction, backend=backend)

    def forward(
        self, embeddings: Tensor, labels: Any, reference: Tensor | None = None, reference_labels: Any = None
    ) -> Tensor:
        return batch.easy_positive_distance(
            embeddings, labels, reference=reference, reference_labels=reference_labels, **self.settings()
        )


class Mined(_Configured):
    """`mined` with a strategy; its classes below are those of EXT.

    Strategies that draw at random use another seed for every call in training mode, made from `seed` and the
    number of calls so far, which the state dict holds; in evaluation mode the next one, again and again.

    >>> Mined("batch-hard", margin=5.0)(torch.tensor([[0.0], [1.0], [3.0]]), [0, 0, 1]).item()
    1.0
    """

    calls: Tensor  # [] int64

    def __init__(
        self,
        strategy: str,
        margin: float = 0.25,
        metric: str = "sqeuclidean",
        reduction: str = "mean",
        *,
        fallback: str = "drop",
        seed: int = 0,
        backend: str = "auto",
    ) -> None:
        super().__init__(
            strategy=strategy, margin=margin, metric=metric, reduction=reduction, fallback=fallback,
            seed=inputs.seed_value(seed), backend=backend,
        )  # fmt: skip
        self.register_buffer("calls", torch.zeros((), dtype=torch.int64))

    def forward(
        self, embeddings: Tensor, labels: Any, reference: Tensor | None = None, reference_labels: Any = None
    ) -> Tensor:
        loss = triplet.mined(
            embeddings, labels, reference=reference, reference_labels=reference_labels,
            call=self.calls.clone(), **self.settings(),
        )  # fmt: skip
        if self.training:
            self.calls += 1
        return loss


class _Case(Mined):
    case: ClassVar[str]

    def __init__(
        self,
        margin: float = 0.25,
        metric: str = "sqeuclidean",
        reduction: str = "mean",
        *,
        fallback: str = "drop",
        seed: int = 0,
        backend: str = "auto",
    ) -> None:
        super().__init__(self.case, margin, metric, reduction, fallback=fallback, seed=seed, backend=backend)


class EPEN(_Case):
    """`epen`: easiest positive, easiest negative."""

    case = "epen"


class EPHN(_Case):
    """`ephn`: easiest positive, hardest negative."""

    case = "ephn"


class HPEN(_Case):
    """`hpen`: hardest positive, easiest negative."""

    case = "hpen"


class HPHN(_Case):
    """`hphn`: hardest positive, hardest negative."""

    case = "hphn"


class Assorted(_Case):
    """`assorted`: one of the four at random for each anchor, anew in every call."""

    case = "assorted"


class DistanceWeighted(_Case):
    """`distance_weighted`: a negative drawn for each pair, anew in every call."""

    case = "distance-weighted"
