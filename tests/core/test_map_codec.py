"""Map codec: sizes, pixels without a value, rows that do not see each other, bad input."""

import pytest
import torch

from skyvec_core.codecs.map import MapCodec, MapCodecConfig

NAN = float("nan")


@pytest.fixture
def codec():
    codec = MapCodec(MapCodecConfig(encoder_output_dim=16, res_hidden_dims=8, num_res_layers=1))
    generator = torch.Generator().manual_seed(0)
    for parameter in codec.parameters():
        torch.nn.init.normal_(parameter, std=0.3, generator=generator)
    return codec.eval().requires_grad_(requires_grad=False)


def maps(rows=4, size=96, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.rand((rows, size, size), generator=generator)


def test_the_paper_sizes_have_the_official_names_and_channels():
    with torch.device("meta"):
        codec = MapCodec(MapCodecConfig())
    names = set(codec.state_dict())
    assert {"encoder.net.7.net.1.net.2.running_var", "decoder.net.7.bias"} <= names
    assert codec.decoder["net"][3].weight.shape == (512, 128, 4, 4)
    assert codec.encoder["net"][2].weight.shape == (256, 128, 4, 4)


def test_a_map_has_144_codes_and_comes_back_within_its_range(codec):
    tokens = codec.encode(maps())
    assert tokens.ids_BN.shape == tokens.valid_BN.shape == (4, 144)
    assert tokens.ids_BN.dtype == torch.int64
    assert tokens.valid_BN.all()
    decoded = codec.decode(tokens.ids_BN)
    assert decoded.shape == (4, 96, 96)
    assert ((decoded >= 0) & (decoded <= 1)).all()


def test_more_than_the_window_is_cropped_about_the_centre(codec):
    large = maps(size=161)
    middle = large[:, 32:128, 32:128].clone()
    before = large.clone()
    assert torch.equal(codec.encode(large).ids_BN, codec.encode(middle).ids_BN)
    assert torch.equal(large, before)


def test_pixels_without_a_value_read_as_0_and_empty_cells_have_no_token(codec):
    observed = maps()
    observed[0, :8, :8] = NAN
    observed[1, :8, :3], observed[1, :8, 8:13] = float("inf"), -float("inf")
    zeroed = observed.nan_to_num(0, 0, 0)
    tokens = codec.encode(observed)
    assert torch.equal(tokens.ids_BN, codec.encode(zeroed).ids_BN)
    assert (~tokens.valid_BN).nonzero().tolist() == [[0, 0], [1, 1]]


def test_a_small_map_is_centred_and_its_padding_has_no_tokens(codec):
    valid = codec.encode(maps(size=48)).valid_BN[0].view(12, 12)
    assert valid.sum() == 36
    assert valid[3:9, 3:9].all()


def test_official_codes_are_those_of_whole_maps_only(codec):
    whole = maps(size=100)
    assert torch.equal(codec.encode(whole, compat=True).ids_BN, codec.encode(whole).ids_BN)
    with pytest.raises(ValueError, match="without compat"):
        codec.encode(maps(size=95), compat=True)
    whole[0, 50, 50] = NAN
    with pytest.raises(ValueError, match="without compat"):
        codec.encode(whole, compat=True)


def test_a_row_has_the_same_codes_wherever_it_stands(codec):
    observed, order = maps(rows=6), [3, 5, 0, 1, 4, 2]
    assert torch.equal(codec.encode(observed).ids_BN[order], codec.encode(observed[order]).ids_BN)


def test_the_other_rows_of_a_batch_do_not_matter(codec):
    observed = maps(rows=3)
    changed = observed.clone()
    changed[1:] = NAN
    assert torch.equal(codec.encode(observed).ids_BN[0], codec.encode(changed).ids_BN[0])


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_preparing_changes_neither_codes_nor_weights(codec, precision):
    names, expected = list(codec.state_dict()), codec.encode(maps()).ids_BN
    codec.prepare(precision)
    assert torch.equal(codec.encode(maps()).ids_BN, expected)
    assert list(codec.state_dict()) == names


def test_the_published_extension_stretches_before_it_clips(codec):
    stretched = MapCodec(
        MapCodecConfig(
            encoder_output_dim=16, res_hidden_dims=8, num_res_layers=1,
            output_activation_extension=0.1,
        )
    ).eval()  # fmt: skip
    stretched.load_state_dict(codec.state_dict())
    ids = codec.encode(maps()).ids_BN
    expected = (codec.decode(ids) * 1.2 - 0.1).clamp(0, 1)
    torch.testing.assert_close(stretched.decode(ids), expected)


@pytest.mark.parametrize("wrong", [-1, 1000])
def test_an_id_that_is_no_code_is_refused(codec, wrong):
    ids = torch.zeros((2, 144), dtype=torch.int64)
    ids[0, 9] = wrong
    with pytest.raises(ValueError, match=r"map codec: ids must lie in 0\.\.999"):
        codec.decode(ids)
    with pytest.raises(ValueError, match=r"\(B, 144\), found \(2, 100\)"):
        codec.decode(ids[:, :100])


def test_other_shapes_and_types_are_refused(codec):
    with pytest.raises(ValueError, match=r"takes \(B, H, W\), found \(4, 1, 96, 96\)"):
        codec.encode(maps()[:, None])
    with pytest.raises(TypeError, match=r"found torch\.bool"):
        codec.encode(maps() > 0.5)


def test_sizes_that_contradict_each_other_are_refused():
    with pytest.raises(ValueError, match=r"embedding_dim \(4\) must be the number of levels \(2\)"):
        MapCodecConfig(levels=(8, 5))
