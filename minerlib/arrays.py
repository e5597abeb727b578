"""Foreign arrays in, foreign arrays out: torch tensors, NumPy arrays and anything that speaks DLPack.

torch is looked up in `sys.modules` and never imported here: whoever passes a tensor has imported it.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np


@dataclass(frozen=True)
class Origin:
    """Where an argument came from, so that results can go back as the same kind to the same device."""

    kind: str  # "numpy", "torch" or "dlpack"
    device: Any = None  # torch.device, for kind "torch"
    from_dlpack: Callable[[Any], Any] | None = None  # for kind "dlpack"

    def wrap(self, array: np.ndarray) -> Any:
        """`array` as the caller's kind on the caller's device."""
        if self.kind == "torch":
            torch = sys.modules["torch"]
            tensor = torch.from_numpy(array)
            return tensor if self.device.type == "cpu" else tensor.to(self.device)
        if self.kind == "dlpack" and self.from_dlpack is not None:
            return self.from_dlpack(array)
        return array


def to_numpy(name: str, value: Any) -> tuple[np.ndarray, Origin]:
    """A host view (a copy only where unavoidable) of an array argument and its origin.

    bfloat16 and float16 come back as float32, which holds them exactly.
    """
    torch = sys.modules.get("torch")
    if torch is not None and isinstance(value, torch.Tensor):
        return _from_torch(name, value, torch), Origin("torch", value.device)
    if isinstance(value, np.ma.MaskedArray):
        raise TypeError(f"{name}: expected a plain array, got a masked one; fill or drop its masked rows")
    if isinstance(value, np.ndarray):
        return _native_order(name, value), Origin("numpy")
    if hasattr(value, "__dlpack__"):
        return _from_dlpack(name, value)
    raise TypeError(
        f"{name}: expected a torch tensor, a NumPy array or an object with __dlpack__, "
        f"got {type(value).__name__}"
    )


def compiling() -> bool:
    """Whether torch is tracing this call."""
    torch = sys.modules.get("torch")
    return torch is not None and bool(torch.compiler.is_compiling())


def plain_tensor(name: str, tensor: Any, torch: Any) -> Any:
    """A dense tensor of real numbers, detached, on its own device."""
    if tensor.is_quantized or tensor.is_nested:
        raise TypeError(f"{name}: expected a plain tensor, got a quantized or nested one")
    if tensor.layout != torch.strided:
        raise TypeError(f"{name}: expected a dense tensor, got layout {tensor.layout}")
    if tensor.device.type == "meta":
        raise ValueError(f"{name}: expected a tensor with data, got one on the meta device")
    if tensor.is_complex():
        raise TypeError(f"{name}: expected real numbers, got {tensor.dtype}")
    return tensor.detach().resolve_neg()


def _from_torch(name: str, tensor: Any, torch: Any) -> np.ndarray:
    tensor = plain_tensor(name, tensor, torch)
    if tensor.dtype in (torch.float16, torch.bfloat16):
        tensor = tensor.float()
    try:
        return tensor.cpu().numpy()
    except (TypeError, RuntimeError) as error:  # float8 and others that NumPy lacks; tensors without storage
        raise TypeError(
            f"{name}: expected a tensor that NumPy can hold, got {tensor.dtype} ({error})"
        ) from error


def _native_order(name: str, array: np.ndarray) -> np.ndarray:
    if array.dtype.kind in "biu" and array.dtype.isnative:  # spares them the name, which takes NumPy 2 us
        return array
    if array.dtype.name == "bfloat16":  # ml_dtypes' extension type: the upper half of a float32
        words = array.view(np.uint16).astype(np.uint32) << np.uint32(16)
        return words.view(np.float32)
    if array.dtype.kind not in "biuf":
        raise TypeError(f"{name}: expected numbers, got dtype {array.dtype}")
    if array.dtype.kind == "f" and array.dtype.itemsize == 2:  # of either byte order
        return array.astype(np.float32)
    if not array.dtype.isnative:
        return array.astype(array.dtype.newbyteorder("="))
    return array


def _from_dlpack(name: str, value: Any) -> tuple[np.ndarray, Origin]:
    # The exporter is foreign code, which may raise anything.
    try:
        array = np.from_dlpack(value)
    except Exception as error:
        tensor = _torch_from_dlpack(value)
        if tensor is None:
            raise TypeError(
                f"{name}: expected an array that DLPack can hand over on the host, "
                f"got {type(value).__name__} ({error})"
            ) from error
        array = _from_torch(name, tensor, sys.modules["torch"])
    namespace = getattr(value, "__array_namespace__", None)
    back = getattr(namespace(), "from_dlpack", None) if callable(namespace) else None
    return _native_order(name, array), Origin("dlpack", from_dlpack=back)


def _torch_from_dlpack(value: Any) -> Any:
    """torch holds types that NumPy lacks, bfloat16 above all. None where torch cannot read it either."""
    torch = sys.modules.get("torch")
    if torch is None:
        return None
    try:
        return torch.from_dlpack(value)
    except Exception:
        return None
