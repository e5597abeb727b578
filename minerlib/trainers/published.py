"""Readers of published data sets, from the folders and files they are published as.

A reader lists what lies in a folder: classes, labels, the published split if there is one, the files it all
comes from, and how to decode the images one by one. `read` decodes a listing into a file of bytes, once, and
maps that file from then on; the file belongs to the names, sizes and times of the files it was made from.

Every failure is a `FileError` of one line that names the file, what was expected there, and where the set is
published.
"""

from __future__ import annotations

import hashlib
import json
import os
import pickle
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from minerlib.files import FileError, written_whole
from minerlib.trainers.images import ImageSet

if TYPE_CHECKING:
    from PIL.Image import Image

CRC_URL = "https://warwick.ac.uk/fac/sci/dcs/research/tia/data/crchistolabelednucleihe/"
NCT_URL = "https://zenodo.org/record/1214456"
CIFAR_URL = "https://www.cs.toronto.edu/~kriz/cifar.html"

CRC_CLASSES = ("epithelial", "fibroblast", "inflammatory", "others")
NCT_CLASSES = ("ADI", "BACK", "DEB", "LYM", "MUC", "MUS", "NORM", "STR", "TUM")
CIFAR_BATCHES = (*(f"data_batch_{number}" for number in range(1, 6)), "test_batch")
IMAGE_SUFFIXES = (".bmp", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp")
PATCH = 32  # pixels of a nucleus' side


@dataclass(frozen=True)
class Listing:
    """What a folder holds, before any image is decoded."""

    files: Sequence[Path]  # all it comes from
    labels: np.ndarray  # [N] int64
    classes: tuple[str, ...]
    images: Callable[[], Iterator[Image]]  # N images, in the order of the labels
    held_out: np.ndarray | None = None  # [N] bool, as published


def read(
    name: str,
    list_folder: Callable[[Path], Listing],
    folder: Path,
    side: int,
    cache: Path | None = None,
) -> tuple[ImageSet, Tensor | None]:  # the images, and which of them are held out as published: [N] bool
    """The images of a folder at `side` x `side` pixels, decoded once and then mapped from the cache."""
    if not folder.is_dir():
        raise FileError(f"{folder}: expected the folder that holds {name}, {_what_is(folder)}")
    listing = list_folder(folder)
    if not len(listing.labels):
        raise FileError(f"{folder}: expected images of {name}, found none")
    cached = _cache_folder(cache) / f"{name}-{side}-{_fingerprint(listing.files, folder)}.npy"
    shape = (len(listing.labels), 3, side, side)
    if not cached.exists():
        _decode(name, listing, shape, cached)
    pixels = np.load(cached, mmap_mode="c")  # writes would stay in memory, so torch takes it without a copy
    if pixels.shape != shape:
        raise FileError(f"{cached}: expected pixels of shape {shape}, got {pixels.shape}; remove this file")
    images = ImageSet(torch.from_numpy(pixels), torch.from_numpy(listing.labels), listing.classes)
    return images, None if listing.held_out is None else torch.from_numpy(listing.held_out)


def _cache_folder(named: Path | None) -> Path:
    folder = named or Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "minerlib"
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise FileError(
            f"{folder}: cannot keep decoded images here ({error.strerror}); see --cache"
        ) from None
    return folder


def _fingerprint(files: Sequence[Path], folder: Path) -> str:
    """Changes with the name, size or time of any file."""
    seen = []
    for path in files:
        state = path.stat()
        seen.append((str(path.relative_to(folder)), state.st_size, state.st_mtime_ns))
    return hashlib.sha256(json.dumps(seen).encode()).hexdigest()[:16]


def _decode(name: str, listing: Listing, shape: tuple[int, ...], cached: Path) -> None:
    from PIL.Image import Resampling

    size = shape[2:]
    with written_whole(cached) as stream:
        header = {"descr": "|u1", "fortran_order": False, "shape": shape}
        np.lib.format.write_array_header_1_0(stream, header)
        bar = tqdm(listing.images(), total=shape[0], desc=f"decoding {name}", unit="image", disable=None)
        for image in bar:
            resized = image if image.size == size else image.resize(size, Resampling.BILINEAR)
            stream.write(np.asarray(resized).transpose(2, 0, 1).tobytes())


def _open(path: Path, published: str) -> Image:
    from PIL import Image

    try:
        with Image.open(path) as image:
            return image.convert("RGB")
    except FileNotFoundError:
        raise FileError(f"{path}: no such file{published}") from None
    except (OSError, SyntaxError, Image.DecompressionBombError) as error:  # SyntaxError: a broken PNG or TIFF
        raise FileError(f"{path}: expected an image, it cannot be read ({error}){published}") from None


def _what_is(path: Path) -> str:
    return "this is a file" if path.exists() else "there is no such folder"


# ------------------------------------------------------------------ folders of images


def class_folders(folder: Path) -> Listing:
    """Any folder of folders of images: a folder's name is the class of all images directly in it."""
    return _class_folders(
        folder, sorted(each.name for each in folder.iterdir() if each.is_dir()), IMAGE_SUFFIXES
    )


def nct_crc_he(folder: Path) -> Listing:
    """NCT-CRC-HE-100K: nine folders of .tif patches, one for each tissue."""
    published = f"; NCT-CRC-HE-100K is published at {NCT_URL}"
    missing = [name for name in NCT_CLASSES if not (folder / name).is_dir()]
    if missing:
        inside = folder / "NCT-CRC-HE-100K"
        if inside.is_dir():
            return nct_crc_he(inside)
        raise FileError(
            f"{folder / missing[0]}: expected the folder of .tif patches of this tissue, "
            f"{_what_is(folder / missing[0])}{published}"
        )
    return _class_folders(folder, NCT_CLASSES, (".tif", ".tiff"), published)


def _class_folders(
    folder: Path, classes: Sequence[str], suffixes: Sequence[str], published: str = ""
) -> Listing:
    files: list[Path] = []
    labels: list[int] = []
    for label, name in enumerate(classes):
        found = sorted(path for path in (folder / name).iterdir() if path.suffix.lower() in suffixes)
        if not found:
            expected = f"expected images ({', '.join(suffixes)})"
            raise FileError(f"{folder / name}: {expected}, found none{published}")
        files += found
        labels += [label] * len(found)
    if not classes:
        raise FileError(f"{folder}: expected a folder of images for each class, found no folders")
    return Listing(
        files=files,
        labels=np.array(labels, dtype=np.int64),
        classes=tuple(classes),
        images=lambda: (_open(path, published) for path in files),
    )


# ------------------------------------------------------------------ CRCHistoPhenotypes


def crchistophenotypes(folder: Path) -> Listing:
    """CRCHistoPhenotypes: a 32 x 32 patch around every labelled nucleus of img*/img*.bmp.

    The nuclei of img7/img7.bmp are the rows (x, y) of `detection` in img7/img7_<class>.mat, in pixels counted
    from 1 as MATLAB does. Where a patch leaves its image, the image goes on mirrored. Nuclei come image by
    image, class by class, in the order of the files.
    """
    published = f"; CRCHistoPhenotypes is published at {CRC_URL}"
    root = _crc_root(folder, published)
    names = sorted((each.name for each in root.glob("img*") if each.is_dir()), key=_natural)
    files: list[Path] = []
    labels: list[int] = []
    centres: dict[Path, np.ndarray] = {}
    for name in names:
        picture = root / name / f"{name}.bmp"
        if not picture.is_file():
            raise FileError(
                f"{picture}: expected the image whose nuclei are labelled, no such file{published}"
            )
        files.append(picture)
        found = []
        for label, kind in enumerate(CRC_CLASSES):
            path = root / name / f"{name}_{kind}.mat"
            nuclei = _nuclei(path, published)
            files.append(path)
            found.append(nuclei)
            labels += [label] * len(nuclei)
        centres[picture] = np.concatenate(found)

    def images() -> Iterator[Image]:
        for picture, nuclei in centres.items():
            yield from _patches(picture, nuclei, published)

    return Listing(files, np.array(labels, dtype=np.int64), CRC_CLASSES, images)


def _crc_root(folder: Path, published: str) -> Path:
    """The folder of the img* folders: the one named, or below it as the archive unpacks."""
    for inside in (".", "Classification", "CRCHistoPhenotypes_2016_04_28/Classification"):
        if any((folder / inside).glob("img*/img*.bmp")):
            return folder / inside
    raise FileError(
        f"{folder / 'img1' / 'img1.bmp'}: expected folders img1, img2, ... with an image img1.bmp and "
        f"img1_<class>.mat files each, here or in Classification; found none{published}"
    )


def _natural(name: str) -> tuple[int, str]:
    digits = name.removeprefix("img")
    return (int(digits) if digits.isdecimal() else -1, name)


def _nuclei(path: Path, published: str) -> np.ndarray:  # [n, 2] float64, (x, y) counted from 1
    from scipy.io import loadmat

    if not path.is_file():
        raise FileError(f"{path}: expected the nuclei of this class, no such file{published}")
    try:
        content = loadmat(path, variable_names=["detection"])
    except Exception as error:  # the parser raises whatever the damaged bytes make it raise
        why = " ".join(str(error).split()) or type(error).__name__
        raise FileError(f"{path}: expected a MATLAB file, it cannot be read ({why}){published}") from None
    if "detection" not in content:
        raise FileError(f"{path}: expected a variable 'detection', it has none{published}")
    nuclei = np.asarray(content["detection"])
    if nuclei.size == 0:
        return np.empty((0, 2))
    if nuclei.ndim != 2 or nuclei.shape[1] != 2 or nuclei.dtype.kind not in "iuf":
        raise FileError(
            f"{path}: expected 'detection' to hold rows (x, y), got {nuclei.dtype} of shape "
            f"{list(nuclei.shape)}{published}"
        )
    return nuclei.astype(np.float64)


def _patches(
    picture: Path,
    nuclei: np.ndarray,  # [n, 2]
    published: str,
) -> Iterator[Image]:
    from PIL import Image

    pixels = np.asarray(_open(picture, published))
    height, width = pixels.shape[:2]
    outside = ~((nuclei >= 0.5) & (nuclei < (width + 0.5, height + 0.5))).all(axis=1)
    if outside.any():
        x, y = nuclei[int(outside.argmax())]
        raise FileError(
            f"{picture}: expected nuclei inside its {width} x {height} pixels, got one at ({x:g}, {y:g}) "
            f"in its .mat files{published}"
        )
    half = PATCH // 2
    padded = np.pad(pixels, ((half, half), (half, half), (0, 0)), mode="symmetric")
    for x, y in np.floor(nuclei + 0.5).astype(int) - 1:  # counted from 0
        yield Image.fromarray(padded[y : y + PATCH, x : x + PATCH])


# ------------------------------------------------------------------ CIFAR-10


def cifar10(folder: Path) -> Listing:
    """CIFAR-10's python version: data_batch_1 ... data_batch_5 to train on, test_batch held out."""
    from PIL import Image

    published = f"; CIFAR-10 is published at {CIFAR_URL} (python version)"
    root = folder / "cifar-10-batches-py" if (folder / "cifar-10-batches-py").is_dir() else folder
    files = [root / name for name in CIFAR_BATCHES]
    batches = [_cifar_batch(path, published) for path in files]
    names = _cifar_names(root / "batches.meta", published)
    test = [
        name == "test_batch" for name, (_, labels) in zip(CIFAR_BATCHES, batches, strict=True) for _ in labels
    ]

    def images() -> Iterator[Image.Image]:
        for pixels, _ in batches:
            for row in pixels:
                yield Image.fromarray(np.ascontiguousarray(row.reshape(3, 32, 32).transpose(1, 2, 0)))

    labels = np.concatenate([labels for _, labels in batches])
    if labels.max() >= len(names):
        raise FileError(f"{root}: expected labels below {len(names)}, got {labels.max()}{published}")
    return Listing([*files, root / "batches.meta"], labels, names, images, np.array(test))


def _cifar_batch(path: Path, published: str) -> tuple[np.ndarray, np.ndarray]:  # [n, 3072] uint8, [n] int64
    content = _unpickled(path, published)
    try:
        pixels, labels = np.asarray(content[b"data"]), np.asarray(content[b"labels"], dtype=np.int64)
    except (KeyError, TypeError, ValueError):
        raise FileError(
            f"{path}: expected entries 'data' and 'labels', they are not there{published}"
        ) from None
    if pixels.dtype != np.uint8 or pixels.shape != (len(labels), 3 * 32 * 32) or (labels < 0).any():
        raise FileError(
            f"{path}: expected 'data' of {len(labels)} x 3072 bytes, a row a label, got {pixels.dtype} "
            f"of shape {list(pixels.shape)}{published}"
        )
    return pixels, labels


def _cifar_names(path: Path, published: str) -> tuple[str, ...]:
    content = _unpickled(path, published)
    names = content.get(b"label_names") if isinstance(content, dict) else None
    if not isinstance(names, list) or not names:
        raise FileError(f"{path}: expected an entry 'label_names', it is not there{published}")
    return tuple(name.decode() if isinstance(name, bytes) else str(name) for name in names)


class _ArraysOnly(pickle.Unpickler):
    """Unpickles numbers, strings and arrays, which is all that CIFAR-10 holds, and nothing that could run."""

    def find_class(self, module: str, name: str) -> Any:
        import numpy._core.multiarray as multiarray

        arrays = {
            ("multiarray", "_reconstruct"): multiarray._reconstruct,
            ("multiarray", "scalar"): multiarray.scalar,
            ("numpy", "ndarray"): np.ndarray,
            ("numpy", "dtype"): np.dtype,
        }
        allowed = module in ("numpy", "numpy.core.multiarray", "numpy._core.multiarray")
        found = arrays.get((module.rpartition(".")[2], name)) if allowed else None
        if found is None:
            raise pickle.UnpicklingError(f"it holds {module}.{name}, which is no array")
        return found


def _unpickled(path: Path, published: str) -> Any:
    try:
        with path.open("rb") as stream:
            return _ArraysOnly(stream, encoding="bytes").load()
    except FileNotFoundError:
        raise FileError(f"{path}: expected a batch of the python version, no such file{published}") from None
    except Exception as error:  # the unpickler raises whatever the damaged bytes make it raise
        raise FileError(
            f"{path}: expected a whole batch of CIFAR-10, it cannot be read ({error}){published}"
        ) from None
