"""Tiled convolutions are convolutions, at every size and as exact as the plain ones."""

import pytest
import torch
from torch.nn import functional

from skyvec_core.codecs.fast_convolution import (
    SMALL_KERNEL_NODES,
    TiledConvolution,
    fourier,
    toom_cook,
)

TRANSFORMS = {
    "toom-cook": toom_cook(tile=4, kernel=3, nodes=SMALL_KERNEL_NODES),
    "toom-cook, small tile": toom_cook(tile=2, kernel=3, nodes=(0, 1, -1)),
    "fourier": fourier(tile=6, kernel=3),
    "fourier, odd window": fourier(tile=5, kernel=3),
    "fourier, large kernel": fourier(tile=8, kernel=7),
}


def convolution(kernel, *, inputs=6, outputs=5, bias=True):
    conv = torch.nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2, bias=bias)
    generator = torch.Generator().manual_seed(1)
    for parameter in conv.parameters():
        torch.nn.init.normal_(parameter, generator=generator)
    return conv.requires_grad_(requires_grad=False)


def planes(*shape):
    return torch.randn(shape, generator=torch.Generator().manual_seed(0))


def channels_last(conv, x_BHWC):
    return conv(x_BHWC.movedim(-1, 1)).movedim(1, -1)


def error(found, exact):
    return float((found.double() - exact).square().mean().sqrt() / exact.std())


@pytest.mark.parametrize("name", TRANSFORMS)
def test_products_of_coefficients_make_a_tile_of_the_convolution(name):
    transform = TRANSFORMS[name]
    window = planes(transform.window, transform.window).double()
    kernel = planes(transform.kernel, transform.kernel).double()
    products = (transform.of_window_KQ @ window.flatten()) * (
        transform.of_kernel_KR @ kernel.flatten()
    )
    tile = functional.conv2d(window[None, None], kernel[None, None])[0, 0]
    torch.testing.assert_close(transform.to_tile_PK @ products, tile.flatten())


@pytest.mark.parametrize("name", TRANSFORMS)
@pytest.mark.parametrize("size", [(24, 24), (13, 25), (3, 1)])
def test_a_plane_need_not_be_whole_tiles(name, size):
    transform = TRANSFORMS[name]
    conv, x_BHWC = convolution(transform.kernel), planes(2, *size, 6)
    found = TiledConvolution(conv, transform)(x_BHWC)
    torch.testing.assert_close(found, channels_last(conv, x_BHWC), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", ["toom-cook", "fourier", "fourier, large kernel"])
def test_rounding_is_no_worse_than_eight_units_of_float32(name):
    transform = TRANSFORMS[name]
    conv, x_BHWC = convolution(transform.kernel, inputs=64), planes(2, 24, 24, 64)
    found = TiledConvolution(conv, transform)(x_BHWC)
    exact = channels_last(conv.double(), x_BHWC.double())
    assert error(found, exact) < 8 * torch.finfo(torch.float32).eps


def test_the_usual_nodes_round_worse():
    conv, x_BHWC = convolution(3, inputs=64), planes(2, 24, 24, 64)
    usual = TiledConvolution(conv, toom_cook(tile=4, kernel=3, nodes=(0, 1, -1, 2, -2)))(x_BHWC)
    chosen = TiledConvolution(conv, TRANSFORMS["toom-cook"])(x_BHWC)
    exact = channels_last(conv.double(), x_BHWC.double())
    assert error(usual, exact) > 1.5 * error(chosen, exact)


def test_fourier_tiles_bear_products_in_bfloat16():
    conv, x_BHWC = convolution(7, inputs=64), planes(2, 24, 24, 64)
    found = TiledConvolution(conv, fourier(tile=8, kernel=7), products=torch.bfloat16)(x_BHWC)
    assert found.dtype == torch.float32
    assert error(found, channels_last(conv, x_BHWC).double()) < 2 * torch.finfo(torch.bfloat16).eps


def test_a_convolution_may_lack_a_bias():
    conv, x_BHWC = convolution(3, bias=False), planes(1, 8, 8, 6)
    found = TiledConvolution(conv, TRANSFORMS["toom-cook"])(x_BHWC)
    torch.testing.assert_close(found, channels_last(conv, x_BHWC), rtol=1e-4, atol=1e-4)


def test_no_rows_give_no_rows():
    found = TiledConvolution(convolution(3), TRANSFORMS["fourier"])(planes(0, 8, 8, 6))
    assert found.shape == (0, 8, 8, 5)


def test_nodes_must_fit_the_window():
    with pytest.raises(ValueError, match="3 nodes; tiles of 4 and 3 need 5"):
        toom_cook(tile=4, kernel=3, nodes=(0, 1, -1))
