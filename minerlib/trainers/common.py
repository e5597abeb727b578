"""What every trainer needs around its loop: output folder, checkpoints, tables, features of a set."""

from __future__ import annotations

import csv
import io
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from minerlib.files import written_whole
from minerlib.trainers.images import ImageSet, unit_range


def prepare_output(folder: Path) -> Path:
    """Create the output folder, and fail now rather than after the first epoch if it cannot be written."""
    folder.mkdir(parents=True, exist_ok=True)
    if not os.access(folder, os.W_OK | os.X_OK):
        raise PermissionError(f"{folder}: this folder cannot be written to")
    return folder


def usable_device(name: str) -> torch.device:
    """The device by its torch name, if this machine has it; under torchrun `cuda` is this process's GPU."""
    if name == "cuda" and "LOCAL_RANK" in os.environ:
        name = f"cuda:{os.environ['LOCAL_RANK']}"
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).partition("\n")[0]
        raise ValueError(f"device: expected one that torch can use here, got {name!r} ({reason})") from None
    return device


def save_checkpoint(path: Path, state: Mapping[str, Any]) -> None:
    """Write a checkpoint that appears whole or not at all, so that a killed run can always go on."""
    with written_whole(path) as stream:
        torch.save(dict(state), stream)


def load_checkpoint(
    path: Path,
    kind: str,
    config: Mapping[str, Any],
) -> dict[str, Any]:
    """The checkpoint of a run of this kind under these settings; refuses any other with one line."""
    if not path.exists():
        raise FileNotFoundError(f"{path}: no checkpoint to resume from")
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except OSError:
        raise
    except Exception as error:  # the unpickler raises whatever the damaged bytes make it raise
        raise ValueError(f"{path}: expected a whole checkpoint, it cannot be read") from error
    if not isinstance(state, dict) or state.get("kind") != kind:
        raise ValueError(f"{path}: expected a checkpoint of {kind}, got something else")
    for name, value in config.items():
        if state["config"].get(name) != value:
            raise ValueError(
                f"{name}: the run to resume had {state['config'].get(name)!r}, got {value!r} ({path})"
            )
    return state


def write_csv(
    path: Path,
    columns: Mapping[str, Sequence[Any]],  # of one length
) -> None:
    """A table with a header; floats are written so that they read back as the same bits."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows(zip(*columns.values(), strict=True))
    with written_whole(path) as stream:
        stream.write(text.getvalue().encode())


def write_json(path: Path, value: Any) -> None:
    """Indented JSON with a final newline."""
    with written_whole(path) as stream:
        stream.write((json.dumps(value, indent=2) + "\n").encode())


def network_input(
    images: Tensor,  # [B, 3, H, W] uint8
    device: torch.device,
) -> Tensor:  # [B, 3, H, W] float32 in [-1, 1]
    """A batch as the networks take it; the channels lie last in memory, which convolutions read fastest."""
    return unit_range(images.to(device)).contiguous(memory_format=torch.channels_last)


@torch.no_grad()
def extract_features(
    encoder: nn.Module,
    images: ImageSet,
    batch_size: int,
    device: torch.device,
) -> Tensor:  # [N, D]
    """The encoder's features of a whole set, in evaluation mode; the encoder's own mode is put back."""
    was_training = encoder.training
    encoder.eval()
    rows = torch.arange(len(images)).split(batch_size)
    features = [encoder(network_input(images.rows(part).images, device)) for part in rows]
    encoder.train(was_training)
    return torch.cat(features)
