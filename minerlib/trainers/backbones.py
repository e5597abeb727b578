"""ResNets and VGGs from well-kept libraries, with pretrained weights where there are any.

    resnet18, resnet50, resnet101   MONAI's ResNet in two dimensions; its parameters have torchvision's names
    vgg16, vgg19                    torchvision's, where it is importable

Weights come through torchvision (`weights="torchvision"`), or from a file that the user names: a state dict
as torchvision publishes them. Without either a network starts from scratch, and says so in `origin`.
"""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from minerlib import inputs

RESNETS = {"resnet18": (2, 2, 2, 2), "resnet50": (3, 4, 6, 3), "resnet101": (3, 4, 23, 3)}
VGGS = {"vgg16": 16, "vgg19": 19}
NAMES = (*RESNETS, *VGGS)

CHANNELS = (64, 128, 256, 512)
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class NoWeights(ValueError):
    """Weights or a network that cannot be had here, with the reason; a sweep shows such a row as skipped."""


@dataclass(frozen=True, eq=False)
class Backbone:
    """A network that turns images [B, 3, H, W] in [-1, 1] into features [B, features]."""

    network: nn.Module
    features: int
    origin: str  # where its weights come from, in words


class ImageNetInput(nn.Module):
    """From [-1, 1] to the mean and deviation that pretrained weights expect."""

    mean: Tensor
    std: Tensor

    def __init__(self) -> None:
        super().__init__()
        for name, values in (("mean", IMAGENET_MEAN), ("std", IMAGENET_STD)):
            self.register_buffer(name, torch.tensor(values)[:, None, None], persistent=False)

    def forward(
        self,
        images: Tensor,  # [B, 3, H, W] in [-1, 1]
    ) -> Tensor:  # [B, 3, H, W]
        return ((images + 1) / 2 - self.mean) / self.std


def backbone(
    name: str,
    *,
    outputs: int | None = None,
    width: float = 1.0,
    weights: str | Path | None = None,
) -> Backbone:
    """A network by name; `outputs` puts a fresh linear layer in the place of the classifier.

    Without `outputs` the last layer before the classifier is the output: 512 features for resnet18, 2048 for
    the larger ones, 4096 for the VGGs. `width` scales the channels of a ResNet and goes with no weights.

    Random weights are drawn from torch's generator: seed it. Raises `ValueError` for what no network could
    be, `NoWeights` with the reason where a library or weights are missing.

    >>> small = backbone("resnet18", outputs=8, width=1 / 16)
    >>> small.network.eval()(torch.zeros(2, 3, 32, 32)).shape, small.origin
    (torch.Size([2, 8]), 'from scratch')
    """
    inputs.one_of("backbone", name, NAMES)
    if not 0 < width < float("inf"):
        raise ValueError(f"width: expected a positive number, got {width}")
    if weights is not None and width != 1:
        raise ValueError(f"width: expected 1 with pretrained weights, got {width}")
    network = _resnet(name, width) if name in RESNETS else _vgg(name, width)
    origin = "from scratch"
    if weights is not None:
        state, origin = _state(name, weights)
        _load(network, state, name, origin)
    features = _behead(network, outputs)
    return Backbone(nn.Sequential(ImageNetInput(), network), features, origin)


def _resnet(name: str, width: float) -> nn.Module:
    resnet = _library("monai.networks.nets.resnet", f"{name} needs MONAI (pip install 'minerlib[trainers]')")
    channels = [max(1, round(width * count)) for count in CHANNELS]
    block = resnet.ResNetBlock if name == "resnet18" else resnet.ResNetBottleneck
    network: nn.Module = resnet.ResNet(
        block, RESNETS[name], channels, spatial_dims=2, n_input_channels=3, conv1_t_size=7, conv1_t_stride=2,
        bias_downsample=False, num_classes=1000,
    )  # fmt: skip
    return network


def _vgg(name: str, width: float) -> nn.Module:
    if width != 1:
        raise ValueError(f"width: expected 1 for {name}, got {width}")
    models = _library("torchvision.models", f"{name} needs torchvision")
    network: nn.Module = getattr(models, name)()
    return network


def _state(name: str, weights: str | Path) -> tuple[dict[str, Tensor], str]:
    if weights == "torchvision":
        models = _library("torchvision.models", f"pretrained weights of {name} come through torchvision")
        published = models.get_model_weights(name).DEFAULT
        try:
            return published.get_state_dict(progress=False), f"pretrained ({published})"
        except OSError as error:
            raise NoWeights(f"pretrained weights of {name} cannot be fetched: {error}") from None
    path = Path(weights)
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise NoWeights(f"{path}: expected the weights of {name}, no such file") from None
    except Exception as error:  # the unpickler raises whatever the damaged bytes make it raise
        first_line = str(error).partition("\n")[0]
        raise NoWeights(f"{path}: expected the weights of {name}, it cannot be read ({first_line})") from None
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        raise NoWeights(f"{path}: expected a state dict of {name} as torchvision publishes it")
    return state, f"weights of {path}"


def _load(network: nn.Module, state: dict[str, Tensor], name: str, origin: str) -> None:
    try:
        network.load_state_dict(state)
    except RuntimeError as error:
        lines = [line.strip() for line in str(error).splitlines()[1:]]
        raise NoWeights(f"{origin}: expected those of {name}, they do not fit ({lines[0]})") from None


def _behead(network: Any, outputs: int | None) -> int:
    """Put the last linear layer out of the way, or a fresh one in its place; the length of the output."""
    if hasattr(network, "fc"):
        features = network.fc.in_features
        network.fc = nn.Identity() if outputs is None else nn.Linear(features, outputs)
    else:  # a VGG: two hidden layers of its classifier stay
        features = network.classifier[6].in_features
        network.classifier[6] = nn.Identity() if outputs is None else nn.Linear(features, outputs)
    return features if outputs is None else outputs


def _library(module: str, need: str) -> Any:
    try:
        return importlib.import_module(module)
    except Exception as error:  # a torchvision built for another torch fails with a RuntimeError
        first_line = str(error).partition("\n")[0]
        raise NoWeights(f"{need}, which did not import: {first_line}") from None
