"""Convolutional autoencoder of the image codec: planes at 1, 1/2 and 1/4 of the pixel grid.

Architecture and tensor names follow the published AION-1 image codec (paper, appendix).
"""

from __future__ import annotations

from itertools import pairwise

from torch import Tensor, nn

# Shape letters: B object, D channel, P pixel.


class Autoencoder(nn.Module):
    """Planes (B, ``inputs``, H, W) to ``hidden`` channels on a coarser grid, and back.

    Parameters
    ----------
    inputs
        Channels of the planes.
    hidden
        Channels of the code; each finer grid has half as many.
    compressions
        How often the grid is halved.
    repeats
        Residual units on each grid but the finest.
    """

    def __init__(self, *, inputs: int, hidden: int, compressions: int, repeats: int) -> None:
        super().__init__()
        widths = [hidden // 2**step for step in range(compressions, -1, -1)]
        first, last = widths[0], widths[-1]
        self.conv_in = Convolution(inputs, first, 7)
        self.conv_out = Convolution(first, inputs, 3)
        down: list[nn.Module] = [ResidualUnit(first)]
        up: list[nn.Module] = [ResidualUnit(first)]
        for narrow, wide in pairwise(widths):
            down += [Convolution(narrow, wide, 3, stride=2), _residual_units(wide, repeats)]
            up += [_Upsample(wide, narrow), _residual_units(wide, repeats)]
        down += [Convolution(last, last, 7), _residual_units(last, repeats), _channel_norm(last)]
        up += [Convolution(last, last, 3), _residual_units(last, repeats)]
        self.encoder_layers = nn.ModuleList(down)
        self.decoder_layers = nn.ModuleList(reversed(up))

    def encode(self, x: Tensor) -> Tensor:
        """Planes to code, which is normalized over its channels."""
        x = self.conv_in(x)
        for layer in self.encoder_layers:
            x = layer(x)
        return x

    def decode(self, x: Tensor) -> Tensor:
        """Code to planes."""
        for layer in self.decoder_layers:
            x = layer(x)
        out: Tensor = self.conv_out(x)
        return out


class Convolution(nn.Module):
    """A convolution that keeps the size of the grid, or divides it by ``stride``."""

    def __init__(self, inputs: int, outputs: int, kernel: int, *, stride: int = 1) -> None:
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, kernel, stride=stride, padding=kernel // 2)

    def forward(self, x: Tensor) -> Tensor:
        """(B, ``inputs``, H, W) to (B, ``outputs``, H / stride, W / stride)."""
        out: Tensor = self.conv(x)
        return out


class ResidualUnit(nn.Module):
    """Adds to planes (B, width, H, W) a gated function of their 3 x 3 neighborhoods."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.net = nn.Sequential(
            Convolution(width, width, 3),
            nn.ELU(),
            nn.Conv2d(width, width, 1),
            nn.ELU(),
            SqueezeExcite(width),
        )

    def forward(self, x: Tensor) -> Tensor:
        """(B, width, H, W) of the same shape."""
        out: Tensor = self.net(x) + x
        return out


class SqueezeExcite(nn.Module):
    """Channel gate from an attention-weighted mean over the whole cutout."""

    def __init__(self, width: int) -> None:
        super().__init__()
        inner = max(16, width // 2)
        self.to_k = nn.Conv2d(width, 1, 1)
        self.net = nn.Sequential(
            nn.Conv2d(width, inner, 1), nn.LeakyReLU(0.1), nn.Conv2d(inner, width, 1), nn.Sigmoid()
        )

    def forward(self, x: Tensor) -> Tensor:
        """(B, width, H, W) of the same shape."""
        weight_B1P = self.to_k(x).flatten(2).softmax(-1)
        mean_BD1 = x.flatten(2) @ weight_B1P.transpose(1, 2)
        gated: Tensor = x * self.net(mean_BD1[..., None])
        return gated


def _residual_units(width: int, count: int) -> nn.Sequential:
    return nn.Sequential(*(ResidualUnit(width) for _ in range(count)))


class _Upsample(nn.Module):
    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Conv2d(inputs, 4 * outputs, 1), nn.SiLU(), nn.PixelShuffle(2))

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.net(x)
        return out


def _channel_norm(width: int) -> nn.Sequential:
    return nn.Sequential(_Move(1, -1), nn.LayerNorm(width), _Move(-1, 1))


class _Move(nn.Module):
    def __init__(self, source: int, target: int) -> None:
        super().__init__()
        self.source, self.target = source, target

    def forward(self, x: Tensor) -> Tensor:
        return x.movedim(self.source, self.target)
