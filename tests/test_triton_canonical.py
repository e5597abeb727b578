"""Canonical distances of the Triton kernels under the interpreter: the bits of the reference."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from minerlib import reference
from tests import datasets
from tests.triton_interpreter import INTERPRETED, NOT_INTERPRETED

pytestmark = pytest.mark.skipif(not INTERPRETED, reason=NOT_INTERPRETED)

if INTERPRETED:
    import triton
    import triton.language as tl

    from tritonkernels import canonical
    from tritonkernels import filter as filters

    @triton.jit
    def _tile(
        x, y, out, rows, columns, dims, PRODUCT: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr
    ):
        i, j = tl.arange(0, ROWS).to(tl.int64), tl.arange(0, COLUMNS).to(tl.int64)
        sums = canonical.tile_sums(x, y, i, j, i < rows, j < columns, rows, columns, dims, PRODUCT)
        mask = (i < rows)[:, None] & (j < columns)[None, :]
        tl.store(out + i[:, None] * columns + j[None, :], sums, mask=mask)

    @triton.jit
    def _pairs(x, y, x_norms, y_norms, i, j, out, count, dims, COSINE: tl.constexpr, PAIRS: tl.constexpr):
        pair = tl.arange(0, PAIRS)
        live = pair < count
        at_i, at_j = tl.load(i + pair, mask=live, other=0), tl.load(j + pair, mask=live, other=0)
        values = canonical.pair_selections(x, y, x_norms, y_norms, at_i, at_j, live, dims, COSINE)
        tl.store(out + pair, values, mask=live)

    @triton.jit
    def _dots(a, b, out, row, dims, ROWS: tl.constexpr, DEPTH: tl.constexpr):
        i = tl.arange(0, ROWS)
        at = row + tl.program_id(0).to(tl.int64)
        dots = filters.tile_dots(a, b, at, at, dims, ROWS, ROWS, DEPTH, "ieee")
        tl.store(out + i[:, None] * ROWS + i[None, :], dots)


def _rows(data: str, n: int, d: int, dtype: str) -> tuple[np.ndarray, torch.Tensor]:
    values = datasets.rows(data, n, d, dtype)
    return values, torch.from_numpy(values).to(getattr(torch, dtype))


@pytest.mark.parametrize("data", ["off-centre", "huge", "subnormal", "zeros"])
@pytest.mark.parametrize("dtype", datasets.DTYPES)
def test_pairs_tiles_and_norms_have_the_bits_of_the_reference(data: str, dtype: str) -> None:
    for d in (1, 17):
        (x, tx), (y, ty) = _rows(data, 7, d, dtype), _rows(data, 5, d, dtype)
        wide = [rows.float() if dtype == "float16" else rows for rows in (tx, ty)]  # as every caller does
        assert np.array_equal(canonical.norms(wide[0]).numpy(), np.sqrt(reference.squared_norms(x)))
        for product, wanted in ((False, reference.squared_distances), (True, reference.dot_products)):
            out = torch.full((7, 5), torch.nan, dtype=torch.float64)
            by_dimension = tx.T.contiguous(), ty.T.contiguous()
            _tile[(1,)](*by_dimension, out, 7, 5, d, PRODUCT=product, ROWS=8, COLUMNS=8)
            assert np.array_equal(out.numpy(), wanted(x, y))
        i, j = (torch.from_numpy(at.ravel()) for at in np.indices((7, 5)))
        for metric in ("sqeuclidean", "cosine"):
            lengths = canonical.metric_norms(*wide, metric)
            out = torch.full((35,), torch.nan, dtype=torch.float64)
            _pairs[(1,)](tx, ty, *lengths, i, j, out, 35, d, COSINE=metric == "cosine", PAIRS=64)
            assert np.array_equal(out.numpy(), reference.selection_values(x, y, metric).ravel()), metric


def test_rows_beyond_two_to_the_31_values() -> None:
    """32-bit places would wrap. Pages of the 4 GB that are not touched are never used."""
    far, d = 1 << 25, 64
    whole = torch.empty((far + 16) * d, dtype=torch.float16).view(-1, d)
    x = _rows("gaussian", 16, d, "float16")[1]
    whole[far:] = x
    i = torch.arange(far, far + 16)
    unread, out = torch.zeros(1, dtype=torch.float64), torch.full((16,), torch.nan, dtype=torch.float64)
    _pairs[(1,)](whole, x, unread, unread, i, torch.zeros_like(i), out, 16, d, COSINE=False, PAIRS=16)
    wanted = reference.squared_distances(x.double().numpy(), x[:1].double().numpy())[:, 0]
    assert np.array_equal(out.numpy(), wanted)
    dots = torch.full((16, 16), torch.nan)
    _dots[(1,)](whole, whole, dots, far, d, ROWS=16, DEPTH=d)
    assert torch.allclose(dots, x.float() @ x.float().T, rtol=1e-5, atol=1e-5)
