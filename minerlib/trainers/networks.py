"""JTANet's two networks, layer by layer as Table 1 of the paper lists them.

    Siamcoder  images [B, 3, 64, 64] -> features [B, EL]
    Decoder    features [B, EL]      -> images [B, 3, 64, 64] in (-1, 1)

Every convolution is 3x3 with stride 1, padding 1 and no bias; LeakyReLU leaks 0.2; pooling is 2x2 with
stride 2; upsampling is bilinear by 2. Source: JTANet, Table 1 and Fig. 4.
"""

from __future__ import annotations

from torch import Tensor, nn

IMAGE_SHAPE = (3, 64, 64)
LEAK = 0.2
SIAMCODER_CHANNELS = (64, 128, 256, 512, 1024, 1024)
DECODER_CHANNELS = (1024, 1024, 512, 256, 128, 64)


def scaled_channels(channels: tuple[int, ...], width: float) -> tuple[int, ...]:
    """Channel counts times `width`, at least one each.

    >>> scaled_channels((64, 128), 0.25)
    (16, 32)
    """
    if not 0 < width < float("inf"):
        raise ValueError(f"width must be a positive number, got {width!r}")
    return tuple(max(1, round(count * width)) for count in channels)


class Siamcoder(nn.Module):
    """The encoder that autoencoder and Siamese network share: seven convolutions, six of them pooled.

    `width` scales the channels of the inner layers (1.0 is the paper); the features keep `embedding_length`.

    >>> import torch
    >>> Siamcoder(embedding_length=8, width=1 / 32).eval()(torch.zeros(2, 3, 64, 64)).shape
    torch.Size([2, 8])
    """

    def __init__(self, embedding_length: int, width: float = 1.0) -> None:
        super().__init__()
        channels = scaled_channels(SIAMCODER_CHANNELS, width)
        inputs = (IMAGE_SHAPE[0], *channels[:-1])
        pooled = [
            nn.Sequential(
                nn.Conv2d(before, after, 3, padding=1, bias=False),
                nn.BatchNorm2d(after),
                nn.LeakyReLU(LEAK, inplace=True),
                nn.MaxPool2d(2),
            )
            for before, after in zip(inputs, channels, strict=True)
        ]
        last = nn.Sequential(
            nn.Conv2d(channels[-1], embedding_length, 3, padding=1, bias=False),
            nn.BatchNorm2d(embedding_length),
            nn.LeakyReLU(LEAK, inplace=True),
        )
        self.layers = nn.Sequential(*pooled, last)

    def forward(
        self,
        images: Tensor,  # [B, 3, 64, 64]
    ) -> Tensor:  # [B, EL]
        return self.layers(images).flatten(1)


class Decoder(nn.Module):
    """The up-convolutional network that draws the image again from its features.

    >>> import torch
    >>> Decoder(embedding_length=8, width=1 / 32).eval()(torch.zeros(2, 8)).shape
    torch.Size([2, 3, 64, 64])
    """

    def __init__(self, embedding_length: int, width: float = 1.0) -> None:
        super().__init__()
        channels = scaled_channels(DECODER_CHANNELS, width)
        inputs = (embedding_length, *channels[:-1])
        upsampled = [
            nn.Sequential(
                nn.ConvTranspose2d(before, after, 3, padding=1, bias=False),
                nn.BatchNorm2d(after),
                nn.LeakyReLU(LEAK, inplace=True),
                nn.Upsample(scale_factor=2, mode="bilinear"),
            )
            for before, after in zip(inputs, channels, strict=True)
        ]
        last = nn.Sequential(
            nn.ConvTranspose2d(channels[-1], IMAGE_SHAPE[0], 3, padding=1, bias=False),
            nn.BatchNorm2d(IMAGE_SHAPE[0]),
            nn.Tanh(),
        )
        self.layers = nn.Sequential(*upsampled, last)

    def forward(
        self,
        features: Tensor,  # [B, EL]
    ) -> Tensor:  # [B, 3, 64, 64]
        return self.layers(features[:, :, None, None])


class JTANet(nn.Module):
    """Siamcoder and Decoder in one module, so that one optimiser and one checkpoint hold both."""

    def __init__(self, embedding_length: int, width: float = 1.0) -> None:
        super().__init__()
        self.siamcoder = Siamcoder(embedding_length, width)
        self.decoder = Decoder(embedding_length, width)

    def forward(
        self,
        images: Tensor,  # [B, 3, 64, 64]
    ) -> tuple[Tensor, Tensor]:  # features [B, EL], reconstructions [B, 3, 64, 64]
        features = self.siamcoder(images)
        return features, self.decoder(features)
