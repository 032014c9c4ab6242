"""Encoders of two-dimensional images: inputs [B, 1, H, W], standardised grey values."""

from __future__ import annotations

from itertools import pairwise

from torch import Tensor, nn

from common.models.registry import Encoder, Reading, Size, all_seen, encoder
from common.task import Modality


@encoder("image", "linear")
class LinearImage(Encoder):
    """An 8 x 8 thumbnail: with a linear head, a logistic regression on it."""

    size: Size = "linear"

    def __init__(self, modality: Modality, width: int, dropout: float) -> None:
        """Args as in :func:`common.models.registry.build_encoder`."""
        super().__init__()
        self.features = 64
        self.thumbnail = nn.AdaptiveAvgPool2d(8)

    def forward(self, x: Tensor) -> Tensor:
        """[B, 1, H, W] -> [B, 64]."""
        thumbnail: Tensor = self.thumbnail(x)
        return thumbnail.flatten(1)


def read_map(maps: Tensor, feature: Tensor) -> Reading:
    """Returns a feature with the places of its feature map [B, C, H, W] as tokens."""
    tokens = maps.flatten(2).transpose(1, 2)
    return Reading(feature, tokens, all_seen(tokens))


class ConvImage(Encoder):
    """Three strided convolutions with GroupNorm, then a linear map of the feature map, pooled to ``edge`` x ``edge`` places."""

    channels: int
    edge = 4

    def __init__(self, modality: Modality, width: int, dropout: float) -> None:
        """Args as in :func:`common.models.registry.build_encoder`."""
        super().__init__()
        self.features = width
        steps = [1, self.channels, 2 * self.channels, 2 * self.channels]
        layers: list[nn.Module] = []
        for before, after in pairwise(steps):
            layers += [nn.Conv2d(before, after, kernel_size=3, stride=2, padding=1), nn.GroupNorm(4, after), nn.GELU()]
        self.convolutions = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(self.edge))
        self.dropout = nn.Dropout(dropout)
        self.token_width = steps[-1]
        self.out = nn.Linear(self.edge**2 * steps[-1], width)

    def read(self, x: Tensor) -> Reading:
        """[B, 1, H, W] -> [B, width] and a token per place of the map."""
        maps = self.convolutions(x)
        return read_map(maps, self.out(self.dropout(maps.flatten(1))))


@encoder("image", "compact")
class CompactImage(ConvImage):
    """The student's image encoder."""

    size: Size = "small"
    channels = 4


@encoder("image", "small")
class SmallImage(ConvImage):
    """A teacher with 8 to 16 channels."""

    size: Size = "small"
    channels = 8


@encoder("image", "base")
class BaseImage(ConvImage):
    """A teacher with 24 to 48 channels."""

    channels = 24


@encoder("image", "lenet")
class LeNet(Encoder):
    """The LeNet of SMIL's released code (Ma et al., AAAI 2021).

    At 28 x 28 pixels, with 32 features and a head of ten classes, it has the same 6,872 parameters. Other sizes are pooled to its
    4 x 4 feature map. The share of features dropped is the configuration's (SMIL: .5).
    """

    size: Size = "small"
    times = 1

    def __init__(self, modality: Modality, width: int, dropout: float) -> None:
        """Args as in :func:`common.models.registry.build_encoder`."""
        super().__init__()
        self.features = self.times * width
        self.token_width = 10 * self.times
        padding = 0 if modality.pixels >= 16 else 2
        self.layers = nn.Sequential(
            nn.Conv2d(1, 5 * self.times, kernel_size=5, padding=padding),
            nn.MaxPool2d(2),
            nn.ReLU(),
            nn.Conv2d(5 * self.times, 10 * self.times, kernel_size=5, padding=padding),
            nn.Dropout(dropout),
            nn.AdaptiveMaxPool2d(4),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(160 * self.times, self.features),
            nn.ReLU(),
        )

    def read(self, x: Tensor) -> Reading:
        """[B, 1, H, W] -> [B, features] and 16 tokens, the places of the map."""
        maps = self.layers[:7](x)
        return read_map(maps, self.layers[7:](maps))


@encoder("image", "lenet2")
class LeNet2(LeNet):
    """A teacher: :class:`LeNet` with everything twice as wide."""

    times = 2


@encoder("image", "lenet4")
class LeNet4(LeNet):
    """A teacher: :class:`LeNet` with everything four times as wide."""

    size: Size = "base"
    times = 4


@encoder("image", "resnet")
class ResidualImage(Encoder):
    """MONAI's residual network with three strided units of two convolutions, GroupNorm and 16 to 64 channels.

    Not MONAI's ``ResNet``: its blocks hold BatchNorm whatever norm is asked for, which DP-SGD cannot train.
    """

    def __init__(self, modality: Modality, width: int, dropout: float) -> None:
        """Args as in :func:`common.models.registry.build_encoder`."""
        from monai.networks.nets.regressor import Regressor  # here: it takes seconds

        super().__init__()
        self.features, self.token_width = width, 64
        self.network = Regressor(
            in_shape=(1, modality.pixels, modality.pixels),
            out_shape=(width,),
            channels=(16, 32, 64),
            strides=(2, 2, 2),
            num_res_units=2,
            act=("relu", {"inplace": False}),
            norm=("group", {"num_groups": 4}),
            dropout=dropout or None,
        )

    def read(self, x: Tensor) -> Reading:
        """[B, 1, H, W] -> [B, width] and a token per place of the map."""
        maps = self.network.net(x)
        return read_map(maps, self.network.reshape(self.network.final(maps)))


@encoder("image", "densenet")
class DenseNetImage(Encoder):
    """MONAI's densely connected network with two blocks of four layers and GroupNorm."""

    def __init__(self, modality: Modality, width: int, dropout: float) -> None:
        """Args as in :func:`common.models.registry.build_encoder`."""
        from monai.networks.nets.densenet import DenseNet  # here: it takes seconds

        super().__init__()
        self.features = width
        self.network = DenseNet(
            spatial_dims=2,
            in_channels=1,
            out_channels=width,
            init_features=16,
            growth_rate=8,
            block_config=(4, 4),
            act=("relu", {"inplace": False}),
            norm=("group", {"num_groups": 4}),
            dropout_prob=dropout,
        )
        self.token_width = 56  # (16 + 4 x 8) / 2 + 4 x 8

    def read(self, x: Tensor) -> Reading:
        """[B, 1, H, W] -> [B, width] and a token per place of the map."""
        maps = self.network.features(x)
        return read_map(maps, self.network.class_layers(maps))
