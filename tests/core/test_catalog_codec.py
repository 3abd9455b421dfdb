"""Catalog codec: vocabulary of the transformer, objects that count, the official raw codes."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from skyvec_core.codecs.catalog import OFFSETS, SIZES, SPECIAL_CODES, CatalogCodec
from skyvec_core.modalities import MODALITIES
from skyvec_core.observations import CutoutCatalogs

NAN = float("nan")
FIRST = torch.tensor(OFFSETS) + SPECIAL_CODES


def objects(rows=3, count=6, seed=0):
    generator = torch.Generator().manual_seed(seed)
    pixels = torch.randint(0, 96, (2, rows, count), generator=generator).float()
    shapes = torch.randn((3, rows, count), generator=generator)
    return CutoutCatalogs(
        x_BO=pixels[0], y_BO=pixels[1], e1_BO=shapes[0], e2_BO=shapes[1], radius_BO=shapes[2].exp(),
        present_BO=torch.ones((rows, count), dtype=torch.bool),
    )  # fmt: skip


def changed(catalogs, name, place, *, value):
    part = getattr(catalogs, name).clone()
    part[place] = value
    return replace(catalogs, **{name: part})


@pytest.fixture(scope="module")
def codec():
    codec = CatalogCodec()
    codec.fit(objects(rows=50, count=40, seed=9))
    return codec.eval()


def test_the_vocabulary_is_the_transformers():
    assert sum(SIZES) + SPECIAL_CODES == MODALITIES["catalog"].vocabulary == 3468
    assert [sum(SIZES[:field]) for field in range(5)] == list(OFFSETS)


def test_an_object_is_five_codes_each_in_its_own_range(codec):
    catalogs = objects()
    tokens = codec.encode(catalogs)
    assert tokens.ids_BN.shape == tokens.valid_BN.shape == (3, 512)
    assert tokens.valid_BN[:, :30].all()
    assert not tokens.valid_BN[:, 30:].any()
    assert (tokens.ids_BN[:, 30:] == 0).all()
    codes = tokens.ids_BN[:, :30].reshape(3, 6, 5) - FIRST
    assert ((codes >= 0) & (codes < torch.tensor(SIZES))).all()
    assert torch.equal(codes[..., 0], catalogs.x_BO.long())
    assert torch.equal(codes[..., 1], catalogs.y_BO.long())


def test_positions_are_rounded_to_whole_pixels(codec):
    catalogs = changed(objects(), "x_BO", (0, 0), value=41.7)
    assert codec.encode(catalogs).ids_BN[0, 0] == FIRST[0] + 42


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("x_BO", -0.51), ("x_BO", 95.51), ("y_BO", 96.0), ("y_BO", NAN),
        ("e1_BO", NAN), ("e2_BO", float("inf")), ("radius_BO", NAN), ("present_BO", False),
    ],
)  # fmt: skip
def test_an_object_that_does_not_count_is_left_out_and_the_next_move_up(codec, name, value):
    whole = objects()
    tokens = codec.encode(changed(whole, name, (1, 2), value=value))
    expected = codec.encode(whole)
    kept = torch.cat([expected.ids_BN[1, :10], expected.ids_BN[1, 15:30]])
    assert torch.equal(tokens.ids_BN[1, :25], kept)
    assert tokens.valid_BN.sum(1).tolist() == [30, 25, 30]
    assert torch.equal(tokens.ids_BN[[0, 2]], expected.ids_BN[[0, 2]])


@pytest.mark.parametrize("value", [-0.5, 95.49])
def test_the_outermost_pixels_belong_to_the_cutout(codec, value):
    assert codec.encode(changed(objects(), "x_BO", (0, 0), value=value)).valid_BN[0, :30].all()


def test_of_too_many_objects_the_first_become_tokens(codec):
    catalogs = objects(rows=2, count=130)
    few = CutoutCatalogs(**{n: getattr(catalogs, n)[:, :102] for n in CutoutCatalogs.__slots__})
    tokens = codec.encode(catalogs)
    assert tokens.valid_BN.sum(1).tolist() == [510, 510]
    assert torch.equal(tokens.ids_BN, codec.encode(few).ids_BN)


@pytest.mark.parametrize("count", [0, 1])
def test_a_cutout_without_objects_has_no_tokens(codec, count):
    catalogs = objects(count=count)
    empty = replace(catalogs, present_BO=torch.zeros_like(catalogs.present_BO))
    tokens = codec.encode(empty)
    assert tokens.ids_BN.shape == (3, 512)
    assert not tokens.valid_BN.any()


def test_official_codes_are_raw_and_filled_up(codec):
    catalogs = changed(objects(), "present_BO", (0, 3), value=False)
    official, ours = codec.encode(catalogs, compat=True), codec.encode(catalogs)
    assert official.valid_BN.all()
    assert official.ids_BN.shape == (3, 30)
    assert (official.ids_BN[0, 15:20] == 9999).all()
    assert torch.equal(official.ids_BN[0, :15], ours.ids_BN[0, :15] - 204)
    assert torch.equal(official.ids_BN[1:], ours.ids_BN[1:, :30] - 204)


def test_official_codes_need_a_position(codec):
    with pytest.raises(ValueError, match="has no position"):
        codec.encode(changed(objects(), "y_BO", (0, 0), value=NAN), compat=True)


@given(order=st.permutations(range(5)))
def test_a_row_has_the_same_codes_wherever_it_stands(codec, order):
    rows = list(order)
    catalogs = changed(objects(rows=5, count=120), "x_BO", (slice(2), slice(50)), value=-9.0)
    turned = CutoutCatalogs(**{n: getattr(catalogs, n)[rows] for n in CutoutCatalogs.__slots__})
    straight, moved = codec.encode(catalogs), codec.encode(turned)
    assert torch.equal(straight.ids_BN[rows], moved.ids_BN)
    assert torch.equal(straight.valid_BN[rows], moved.valid_BN)


def test_decoding_gives_objects_back(codec):
    catalogs = changed(objects(), "present_BO", (0, slice(4, 6)), value=False)
    ids = codec.encode(catalogs).ids_BN
    decoded = codec.decode(ids)
    assert decoded.x_BO.shape == (3, 102)
    assert torch.equal(decoded.present_BO[:, :6], catalogs.present_BO)
    assert not decoded.present_BO[:, 6:].any()
    there = catalogs.present_BO
    assert torch.equal(decoded.x_BO[:, :6][there], catalogs.x_BO[there])
    assert torch.equal(decoded.y_BO[:, :6][there], catalogs.y_BO[there])
    assert decoded.radius_BO[~decoded.present_BO].isnan().all()
    error = (decoded.e1_BO[:, :6] - catalogs.e1_BO)[there].abs()
    assert error.median() < 0.01
    assert torch.equal(codec.encode(decoded).ids_BN[:, ::5], ids[:, ::5])


def test_official_decoding_marks_what_is_no_code_with_minus_one(codec):
    catalogs = changed(objects(), "present_BO", (0, 3), value=False)
    decoded = codec.decode(codec.encode(catalogs, compat=True).ids_BN, compat=True)
    assert torch.equal(decoded.present_BO, catalogs.present_BO)
    assert decoded.x_BO[0, 3] == decoded.radius_BO[0, 3] == -1
    middles = codec.decode(codec.encode(catalogs).ids_BN)
    assert (decoded.e1_BO[1] > middles.e1_BO[1, :6]).all()


def test_codes_of_another_field_are_no_object(codec):
    ids = codec.encode(objects()).ids_BN.clone()
    ids[0, 0] = ids[0, 1]
    assert codec.decode(ids).present_BO[0, :6].tolist() == [False, *[True] * 5]


@pytest.mark.parametrize(("wrong", "compat"), [(-1, False), (3468, False), (-1, True)])
def test_an_id_outside_the_vocabulary_is_refused(codec, wrong, compat):
    with pytest.raises(ValueError, match="catalog codec: ids must lie in 0"):
        codec.decode(torch.tensor([[204, 300, 400, 1500, wrong]]), compat=compat)


def test_other_types_are_refused(codec):
    with pytest.raises(TypeError, match="takes CutoutCatalogs, found Tensor"):
        codec.encode(torch.zeros(3, 5))
    with pytest.raises(ValueError, match=r"decodes ids \(B, N\)"):
        codec.decode(torch.tensor([1, 2]))
