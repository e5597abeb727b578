"""Published data sets, read from small folders in the exact formats; what is missing or damaged is named."""

from __future__ import annotations

import io
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.io import savemat

from minerlib import cli
from minerlib.files import FileError
from minerlib.trainers import data, images, published
from minerlib.trainers.settings import Settings


@pytest.fixture
def load(tmp_path):
    def load(name: str, folder: Path, **settings) -> images.Split:
        return data.load(Settings(data=name, data_folder=folder, cache=tmp_path / "cache", **settings))

    return load


def coded(height: int, width: int, number: int = 0) -> np.ndarray:  # [height, width, 3] uint8
    """Pixels that say where they are: red the row, green the column, blue the image."""
    rows, columns = np.mgrid[:height, :width]
    return np.stack([rows, columns, np.full_like(rows, number)], axis=2).astype(np.uint8)


def colour(images: torch.Tensor, number: int) -> list[int]:
    return images[number, :, 0, 0].tolist()


# ------------------------------------------------------------------ CRCHistoPhenotypes

NUCLEI = {  # of two images: (x, y) from 1
    1: {
        "epithelial": [[20, 30], [40.4, 50.6]],
        "fibroblast": [[1, 1]],
        "inflammatory": [],
        "others": [[60, 80]],
    },
    2: {
        "epithelial": [[30, 30]],
        "fibroblast": [[40, 40]],
        "inflammatory": [[35, 21], [22, 33]],
        "others": [],
    },
}


@pytest.fixture
def crc(tmp_path) -> Path:
    root = tmp_path / "CRCHistoPhenotypes_2016_04_28" / "Classification"
    for number, nuclei in NUCLEI.items():
        folder = root / f"img{number}"
        folder.mkdir(parents=True)
        Image.fromarray(coded(80, 60, number)).save(folder / f"img{number}.bmp")
        for kind, rows in nuclei.items():
            detection = np.array(rows, dtype=np.float64).reshape(-1, 2) if rows else np.empty((0, 0))
            savemat(folder / f"img{number}_{kind}.mat", {"detection": detection})
    return tmp_path


def test_nuclei_are_patches_around_their_centres(crc, load):
    split = load("crchistophenotypes", crc, held_out=0.5)
    assert split.train.classes == ("epithelial", "fibroblast", "inflammatory", "others")
    listing = published.crchistophenotypes(crc)
    assert listing.labels.tolist() == [0, 0, 1, 3, 0, 1, 2, 2]
    patches = [np.asarray(patch) for patch in listing.images()]
    assert {patch.shape for patch in patches} == {(32, 32, 3)}
    # the pixel (x, y) counted from 1 is column x - 1 and row y - 1, and lies at 16, 16 of its patch
    centres = [patch[16, 16].tolist() for patch in patches]
    assert centres[:4] == [[29, 19, 1], [50, 39, 1], [0, 0, 1], [79, 59, 1]]
    assert centres[4:] == [[29, 29, 2], [39, 39, 2], [20, 34, 2], [32, 21, 2]]
    assert patches[0][0, 0].tolist() == [13, 3, 1]
    # outside the image it goes on mirrored
    assert patches[2][15, 15].tolist() == [0, 0, 1]
    assert patches[2][14, 16].tolist() == [1, 0, 1]


def test_nuclei_are_resized_for_the_networks(crc, load):
    split = load("crchistophenotypes", crc, side=64, held_out=0.5)
    assert split.train.images.shape[1:] == (3, 64, 64)
    assert {colour(split.train.images, number)[2] for number in range(len(split.train))} == {1, 2}


def test_2000_of_the_22444_nuclei_are_held_out():
    labels = torch.repeat_interleave(torch.arange(4), torch.tensor([7722, 5712, 6971, 2039]))
    nuclei = images.ImageSet(torch.zeros(len(labels), 3, 1, 1, dtype=torch.uint8), labels, ("",) * 4)
    for seed in (0, 1):
        split = images.stratified_split(nuclei, data.SOURCES["crchistophenotypes"].held_out, seed)
        assert (len(split.train), len(split.held_out)) == (20444, 2000)


WRONG_NUCLEI = {
    "img1_others.mat: expected the nuclei of this class, no such file": lambda mat: mat.unlink(),
    "img1_others.mat: expected a MATLAB file": lambda mat: mat.write_bytes(b"MATLAB 5.0 MAT-file"),
    "img1_others.mat: expected a variable 'detection'": lambda mat: savemat(mat, {"x": [1]}),
    "expected 'detection' to hold rows": lambda mat: savemat(mat, {"detection": np.ones((4, 3))}),
    "img1.bmp: expected nuclei inside its 60 x 80": lambda mat: savemat(mat, {"detection": [[61.0, 5.0]]}),
    "img1.bmp: expected an image, it": lambda mat: mat.with_name("img1.bmp").write_bytes(b"BM"),
    "img1.bmp: expected the image whose": lambda mat: mat.with_name("img1.bmp").unlink(),
}


@pytest.mark.parametrize("named", WRONG_NUCLEI)
def test_what_is_wrong_with_nuclei_is_named(crc, load, named):
    folder = crc / "CRCHistoPhenotypes_2016_04_28" / "Classification" / "img1"
    WRONG_NUCLEI[named](folder / "img1_others.mat")
    with pytest.raises(FileError, match=named) as caught:
        load("crchistophenotypes", crc)
    assert published.CRC_URL in str(caught.value)


# ------------------------------------------------------------------ NCT-CRC-HE-100K and any folder


@pytest.fixture
def nct(tmp_path) -> Path:
    for label, name in enumerate(published.NCT_CLASSES):
        folder = tmp_path / "NCT-CRC-HE-100K" / name
        folder.mkdir(parents=True)
        for number in range(3):
            Image.fromarray(coded(224, 224, 10 * label + number)).save(folder / f"{name}-{number}.tif")
    return tmp_path


def test_tissues_are_class_folders_of_tif(nct, load):
    for folder in (nct, nct / "NCT-CRC-HE-100K"):
        split = load("nct-crc-he-100k", folder, held_out=1 / 3)
        assert split.train.classes == published.NCT_CLASSES
        assert split.train.images.shape == (18, 3, 224, 224)
        assert split.held_out.labels.tolist() == list(range(9))
        assert all(colour(split.held_out.images, n)[2] // 10 == n for n in range(9))
    assert split.held_out.images[0, :2, 7, 100].tolist() == [7, 100]


def test_a_missing_tissue_is_named(nct, load):
    (nct / "NCT-CRC-HE-100K" / "TUM").rename(nct / "elsewhere")
    with pytest.raises(FileError, match=r"TUM: expected the folder of \.tif patches.*zenodo"):
        load("nct-crc-he-100k", nct)
    (nct / "NCT-CRC-HE-100K" / "TUM").mkdir()
    with pytest.raises(FileError, match=r"TUM: expected images \(\.tif, \.tiff\), found none.*zenodo"):
        load("nct-crc-he-100k", nct)


def test_any_folder_of_class_folders(tmp_path, load):
    for number, (name, suffix) in enumerate([("cat", "png"), ("dog", "jpg"), ("owl", "bmp")]):
        (tmp_path / "pets" / name).mkdir(parents=True)
        for copy in range(4):
            Image.fromarray(np.full((20, 30), 60 * number, np.uint8)).save(
                tmp_path / "pets" / name / f"{copy}.{suffix}"
            )
    (tmp_path / "pets" / "cat" / "notes.txt").write_text("no image")
    split = load("folder", tmp_path / "pets", side=16, held_out=0.25)
    assert split.train.classes == ("cat", "dog", "owl")
    assert split.train.images.shape == (9, 3, 16, 16)
    assert [colour(split.held_out.images, n)[0] for n in range(3)] == [0, 60, 120]
    with pytest.raises(FileError, match="expected a folder of images for each class"):
        load("folder", tmp_path / "pets" / "cat")


def test_decoded_images_are_kept_until_a_file_changes(tmp_path, load, monkeypatch):
    folder = tmp_path / "pets" / "cat"
    folder.mkdir(parents=True)
    for number in range(4):
        Image.fromarray(np.full((8, 8, 3), number, np.uint8)).save(folder / f"{number}.png")
    first = load("folder", tmp_path / "pets", side=8)
    assert len(list((tmp_path / "cache").glob("folder-8-*.npy"))) == 1
    opened = []
    honest = published._open
    monkeypatch.setattr(published, "_open", lambda *given: opened.append(given) or honest(*given))
    again = load("folder", tmp_path / "pets", side=8)
    assert not opened
    assert torch.equal(first.train.images, again.train.images)
    Image.fromarray(np.full((9, 9, 3), 200, np.uint8)).save(folder / "0.png")
    changed = load("folder", tmp_path / "pets", side=8)
    assert len(opened) == 4
    assert 200 in torch.cat([changed.train.images, changed.held_out.images])


# ------------------------------------------------------------------ CIFAR-10


@pytest.fixture
def cifar(tmp_path) -> Path:
    """Pickles as Python 2 wrote them: protocol 2, bytes for text, NumPy's old module names."""
    root = tmp_path / "cifar-10-batches-py"
    root.mkdir()
    for number, name in enumerate(published.CIFAR_BATCHES):
        rows = [coded(32, 32, number).transpose(2, 0, 1).reshape(-1) for _ in range(4)]
        labels = [(number + copy) % 10 for copy in range(4)]
        content = {
            b"batch_label": b"",
            b"labels": labels,
            b"data": np.stack(rows),
            b"filenames": [b"a.png"] * 4,
        }
        write_pickle(root / name, content)
    names = [
        b"airplane",
        b"automobile",
        b"bird",
        b"cat",
        b"deer",
        b"dog",
        b"frog",
        b"horse",
        b"ship",
        b"truck",
    ]
    write_pickle(root / "batches.meta", {b"label_names": names, b"num_cases_per_batch": 4, b"num_vis": 3072})
    return tmp_path


class Python2Pickler(pickle._Pickler):
    """Writes bytes as Python 2 wrote its text."""

    dispatch = pickle._Pickler.dispatch.copy()

    def save_text(self, text):
        short = len(text) < 256
        self.write(b"U" + bytes([len(text)]) if short else b"T" + len(text).to_bytes(4, "little"))
        self.write(text)
        self.memoize(text)

    dispatch[bytes] = save_text


def write_pickle(path: Path, content) -> None:
    stream = io.BytesIO()
    Python2Pickler(stream, protocol=2).dump(content)
    text = stream.getvalue()
    path.write_bytes(text.replace(b"cnumpy._core.multiarray\n", b"cnumpy.core.multiarray\n"))


def test_cifar_keeps_its_published_split(cifar, load):
    for folder in (cifar, cifar / "cifar-10-batches-py"):
        split = load("cifar-10", folder)
        assert (len(split.train), len(split.held_out)) == (20, 4)
        assert split.train.classes[:2] == ("airplane", "automobile")
        assert split.train.images.shape[1:] == (3, 32, 32)
    assert split.train.labels[:5].tolist() == [0, 1, 2, 3, 1]
    assert split.held_out.images[0, :, 4, 9].tolist() == [4, 9, 5]
    assert len(load("cifar-10", cifar, held_out=0.5).train) < 20


class Harmful:
    def __reduce__(self):
        return print, ("ran",)


NARROW = {b"data": np.zeros((2, 9), np.uint8), b"labels": [0, 1]}
WRONG_BATCHES = {
    "test_batch: expected a batch of the python version, no such file": lambda batch: batch.unlink(),
    "test_batch: expected a whole batch": lambda batch: batch.write_bytes(b"\x80\x02}q\x01"),
    "test_batch: expected entries 'data' and": lambda batch: write_pickle(batch, {b"data": 1}),
    "expected 'data' of 2 x 3072 bytes": lambda batch: write_pickle(batch, NARROW),
    "batches.meta: expected an entry": lambda batch: write_pickle(batch.with_name("batches.meta"), {}),
    "it holds .*print, which is no array": lambda batch: write_pickle(batch, Harmful()),
}


@pytest.mark.parametrize("named", WRONG_BATCHES)
def test_what_is_wrong_with_cifar_is_named_and_nothing_in_it_runs(cifar, load, named, capsys):
    WRONG_BATCHES[named](cifar / "cifar-10-batches-py" / "test_batch")
    with pytest.raises(FileError, match=named) as caught:
        load("cifar-10", cifar)
    assert published.CIFAR_URL in str(caught.value)
    assert "\n" not in str(caught.value)
    assert "ran" not in capsys.readouterr().out


# ------------------------------------------------------------------ the command


MISSING = {
    f"data_folder: expected the folder that holds cifar-10 (published at {published.CIFAR_URL})": None,
    "nowhere: expected the folder that holds cifar-10, there is no such folder": "nowhere",
    "data_batch_1: expected a batch of the python version, no such file": ".",
}


@pytest.mark.parametrize("named", MISSING)
def test_the_command_says_in_one_line_what_is_missing(tmp_path, capsys, monkeypatch, named):
    monkeypatch.chdir(tmp_path)
    folder = ["--data-folder", MISSING[named]] if MISSING[named] else []
    command = ["train", "jtanet", "--data", "cifar-10", *folder, "--output", "out", "--cache", "cache"]
    assert cli.main(command) == 2
    message = capsys.readouterr().err
    assert named in message
    assert message.count("\n") == 1


def test_a_real_set_trains(crc, capsys, tmp_path):
    options = (
        "--data crchistophenotypes --held-out 0.3 --epochs 1 --width 0.015625 --batch-size 4 --no-progress"
    )
    folders = [
        "--data-folder",
        str(crc),
        "--output",
        str(tmp_path / "out"),
        "--cache",
        str(tmp_path / "cache"),
    ]
    assert cli.main(["train", "jtanet", *options.split(), *folders]) == 0
    assert "JTANet on crchistophenotypes" in capsys.readouterr().out


def test_the_help_names_every_data_set(capsys):
    with pytest.raises(SystemExit):
        cli.main(["train", "jtanet", "--help"])
    shown = " ".join(capsys.readouterr().out.split()).replace("- ", "-")
    assert all(name in shown for name in data.SOURCES)
