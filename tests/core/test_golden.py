"""Golden vectors: the same everywhere, blind to rounding, awake to everything else."""

import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

import skyvec
from skyvec_core import golden, golden_objects
from skyvec_core.codecs.catalog import CatalogCodec
from skyvec_core.codecs.map import MapCodec, MapCodecConfig
from skyvec_core.embedder import Model
from skyvec_core.golden import GOLDEN_FILE, TOLERANCES, GoldenVectors, write_golden
from skyvec_core.model.config import TransformerConfig
from skyvec_core.model.encoder_decoder import EncoderDecoder
from skyvec_core.observations import CutoutCatalogs, Images, Spectra

TINY = Path(skyvec.__file__).parent / "weights" / "skyvec-tiny"


@pytest.fixture(scope="module")
def tiny():
    return Model.load(TINY)


@pytest.fixture(scope="module")
def every(every_survey_model):
    """A model with a codec of every kind, maps and cutout catalogs included."""
    loaded = Model.load(every_survey_model)
    generator = torch.Generator().manual_seed(0)
    maps = MapCodec(MapCodecConfig(encoder_output_dim=16, res_hidden_dims=4))
    for parameter in maps.parameters():
        torch.nn.init.normal_(parameter, std=0.3, generator=generator)
    catalogs = CatalogCodec()
    for table in catalogs.tables:
        table.fit(torch.randn(2000, generator=generator))
    domains = (*loaded.config.domains_in, "tok_segmap", "catalog")
    config = TransformerConfig(
        dim=32, num_heads=2, encoder_depth=2, decoder_depth=1,
        domains_in=domains, domains_out=("tok_z", "tok_ra"),
    )  # fmt: skip
    transformer = EncoderDecoder(config)
    transformer.initialize(generator)
    codecs = {**loaded.codecs, "tok_segmap": maps, "catalog": catalogs}
    return Model(transformer, codecs, name="every")


@pytest.fixture(scope="module")
def of_tiny(tiny):
    return GoldenVectors.of(tiny, threads=1)


def test_the_packaged_model_gives_the_vectors_that_lie_beside_it(tiny, of_tiny):
    kept = GoldenVectors.load(TINY / GOLDEN_FILE)
    assert kept.current, "run `skyvec models verify skyvec-tiny --write`"
    assert kept.model_digest == tiny.digest
    deviation = of_tiny.compare(kept)
    assert deviation.ok, deviation
    assert deviation.vectors < 1e-6
    assert "of their norm, 100.0% of tokens equal" in str(deviation)


def test_the_file_is_small_and_not_part_of_the_model(tiny, tmp_path):
    assert (TINY / GOLDEN_FILE).stat().st_size < 10_000
    bare = shutil.copytree(TINY, tmp_path / "bare", ignore=shutil.ignore_patterns(GOLDEN_FILE))
    assert Model.load(bare).digest == tiny.digest


def test_inputs_are_the_same_on_every_machine():
    # Frozen: another platform or torch that draws otherwise would be blamed on the processor.
    assert golden_objects._integers("codes of tok_z", 4).tolist() == [
        13116011, 3955903, 5181118, 16161627,
    ]  # fmt: skip
    assert float(golden_objects._uniforms("x", 1000).mean()) == pytest.approx(0.5, abs=0.03)


def test_every_codec_gets_objects_with_invalid_parts(every):
    observed = golden.golden_observations(every)
    ours = {id(every.codecs[key]) for key in observed}
    assert ours == {id(codec) for codec in every.codecs.values()}
    for key, given in observed.items():
        match given:
            case Images():
                there = given.good_BCHW.flatten(1)
            case Spectra():
                there = given.good_BL
            case CutoutCatalogs():
                there = given.present_BO
            case _:
                there = torch.isfinite(given).view(4, -1)
        assert len(there) == 4, key
        assert there.any() and not there.all(), key  # noqa: PT018 - of one thing
    tokens = GoldenVectors.of(every).tokens
    assert (tokens["tok_xp_bp"] == -1).sum() == 5
    for key, codes_PN in tokens.items():
        assert (codes_PN >= 0).any(), key
        if codes_PN.shape[1] > 1 or len(codes_PN) > 1:
            assert len(codes_PN.unique()) > 3, key


def test_drawn_tokens_fill_a_long_object_and_a_shared_batch(every, tiny):
    for model in (every, tiny):
        tokens = golden.golden_tokens(model.config)
        assert list(tokens) == list(model.config.domains_in)
        counts = sum(coded.valid_BN.sum(1) for coded in tokens.values())
        assert 200 < counts[0] <= golden_objects.LONG
        assert (counts[1:] <= 64).all() and (counts[1:] > 0).all()  # noqa: PT018 - of one thing


def test_two_processes_compute_the_same_bits(of_tiny):
    code = (
        "import sys; from skyvec_core.embedder import Model; "
        "from skyvec_core.golden import GoldenVectors; "
        "print(GoldenVectors.of(Model.load(sys.argv[1]), threads=1).bits)"
    )
    run = [sys.executable, "-c", code, str(TINY)]
    assert subprocess.check_output(run, text=True).strip() == of_tiny.bits


def test_another_instruction_set_is_rounding(of_tiny, tmp_path):
    code = (
        "import sys; from pathlib import Path; from skyvec_core.embedder import Model; "
        "from skyvec_core.golden import GoldenVectors; "
        "GoldenVectors.of(Model.load(sys.argv[1])).save(Path(sys.argv[2]))"
    )
    oldest = {"ATEN_CPU_CAPABILITY": "default", "ONEDNN_MAX_CPU_ISA": "SSE41"}
    run = [sys.executable, "-c", code, str(TINY), str(tmp_path / "g")]
    subprocess.run(run, check=True, env=os.environ | oldest)
    deviation = GoldenVectors.load(tmp_path / "g").compare(of_tiny)
    assert deviation.ok, deviation


def test_bfloat16_is_measured_with_its_own_tolerance(of_tiny):
    coarse = GoldenVectors.of(Model.load(TINY, precision="bfloat16"))
    deviation = coarse.compare(of_tiny)
    assert deviation.ok, deviation
    assert deviation.tolerance == TOLERANCES["bfloat16"]
    assert deviation.vectors > TOLERANCES["float32"].vectors
    assert not coarse.compare(of_tiny, tolerance=TOLERANCES["float32"]).ok


def test_linear_layers_rounded_as_a_gpu_may_do_are_noticed(of_tiny, monkeypatch):
    from skyvec_core import packed

    def tf32(x):
        return ((x.contiguous().view(torch.int32) + 0x1000) & ~0x1FFF).view(torch.float32)

    def coarse(self, x):
        y = torch.nn.functional.linear(tf32(x), tf32(self.weight), self.bias)
        return torch.nn.functional.gelu(y) if self._gelu else y

    monkeypatch.setattr(packed, "can_pack", lambda _: False)
    monkeypatch.setattr(packed.PackedLinear, "__call__", coarse)
    deviation = GoldenVectors.of(Model.load(TINY)).compare(of_tiny)
    assert "vectors differ by" in str(deviation)


@pytest.mark.parametrize("wrong", [torch.nan, torch.inf, 30.0])
def test_wrong_vectors_are_out_of_tolerance(of_tiny, wrong):
    vectors = of_tiny.vectors.clone()
    vectors[2, 5] = wrong
    spoilt = replace(of_tiny, vectors=vectors)
    assert not spoilt.compare(of_tiny).ok
    assert spoilt.bits != of_tiny.bits
    assert spoilt.sound == (wrong == 30.0)


def test_expected_vectors_that_are_not_finite_prove_nothing(of_tiny):
    spoilt = replace(of_tiny, vectors=torch.full_like(of_tiny.vectors, torch.nan))
    assert not of_tiny.compare(spoilt).ok


def test_some_flipped_tokens_are_rounding_and_many_are_not(of_tiny):
    def flipped(count):
        codes = of_tiny.tokens["tok_image"].clone()
        codes[0, torch.arange(count) * 7] += 1
        return replace(of_tiny, tokens={**of_tiny.tokens, "tok_image": codes})

    few, many = flipped(4), flipped(40)
    assert few.compare(of_tiny).ok
    assert few.bits != of_tiny.bits
    deviation = many.compare(of_tiny)
    assert deviation.tokens["tok_image"] == pytest.approx(1 - 40 / 576, abs=0.01)
    assert deviation.vectors == 0
    assert "of the tokens of tok_image are equal, at least 98% must be" in str(deviation)


def test_a_modality_that_one_side_lacks_is_named(of_tiny):
    fewer = {key: ids for key, ids in of_tiny.tokens.items() if key != "tok_z"}
    assert "tok_z" in str(replace(of_tiny, tokens=fewer).compare(of_tiny))


def test_another_model_is_named(of_tiny, model_folder):
    deviation = GoldenVectors.of(Model.load(model_folder)).compare(of_tiny)
    assert "expected is" in deviation.reasons[0]
    assert deviation.vectors == float("inf")


def test_a_file_gives_back_what_was_saved(of_tiny, tmp_path):
    of_tiny.save(tmp_path / "g.safetensors")
    again = GoldenVectors.load(tmp_path / "g.safetensors")
    assert again.bits == of_tiny.bits
    assert again.token_digests == of_tiny.token_digests
    assert (again.model_digest, again.precision) == (of_tiny.model_digest, "float32")
    assert again.to_bytes() == of_tiny.to_bytes()
    assert [p.name for p in tmp_path.iterdir()] == ["g.safetensors"]


def test_any_other_file_is_refused_by_name(tmp_path, of_tiny):
    torn, other = tmp_path / "torn", tmp_path / "other"
    torn.write_bytes(of_tiny.to_bytes()[:-100])
    save_file({"vectors": torch.zeros(2, 2)}, other)
    for place in (torn, other, TINY / "config.json"):
        with pytest.raises(ValueError, match=rf"{place}: these are no golden vectors"):
            GoldenVectors.load(place)


def test_golden_vectors_of_another_version_are_not_current(of_tiny):
    assert of_tiny.current
    assert not replace(of_tiny, numerics_version=-1).current
    assert not replace(of_tiny, inputs_version=-1).current


def test_writing_changes_no_thread_count_and_names_the_parts(model_folder, tmp_path):
    folder = shutil.copytree(model_folder, tmp_path / "model")
    before = torch.get_num_threads()
    written = write_golden(folder)
    assert torch.get_num_threads() == before
    assert {"config.json", "model.safetensors", "codecs/image/model.safetensors"} <= set(
        written.parts
    )
    assert GoldenVectors.load(folder / GOLDEN_FILE).parts == written.parts


def test_a_model_without_usable_vectors_gets_no_file(model_folder, tmp_path):
    folder = shutil.copytree(model_folder, tmp_path / "model")
    model = Model.load(folder).transformer
    torch.nn.init.constant_(model.decoder_proj_context.weight, torch.nan)
    from skyvec_core.weights import save_transformer

    save_transformer(model, folder)
    with pytest.raises(ValueError, match="not finite"):
        write_golden(folder)
    assert not (folder / GOLDEN_FILE).exists()


def test_a_model_with_official_errors_has_none(model_folder):
    with pytest.raises(ValueError, match="compat=True"):
        GoldenVectors.of(Model.load(model_folder, compat=True))


def test_a_model_without_codecs_has_vectors_only(model_folder, tmp_path):
    folder = tmp_path / "bare"
    folder.mkdir()
    for name in ("config.json", "model.safetensors"):
        shutil.copy(model_folder / name, folder)
    written = write_golden(folder)
    assert not written.tokens
    assert written.vectors.shape == (4, json.loads((folder / "config.json").read_text())["dim"])
