"""What a scorecard asks: tasks, input sets, heads and baselines, read from a recipe (TOML)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

HeadName = Literal[
    "ridge_mean", "ridge_modalities", "kernel_modalities", "mlp_modalities", "attentive"
]


@dataclass(frozen=True, kw_only=True, slots=True)
class RegressionTask:
    """A number of the catalog to predict; its declared metric is R^2."""

    name: str
    column: str
    unit: str = ""
    redshift: bool = False
    """Also score dz/(1+z): sigma_NMAD, bias and outlier rates."""
    valid: tuple[float, ...] = (-math.inf, math.inf)
    """Labels outside count as unknown."""
    excluded: tuple[str, ...] = ()
    """Token keys that state the label and so may not be inputs."""
    oracle: tuple[str, ...] = ()
    """Truth columns that boosting is given beside the catalog's, to see what could be known."""
    tolerance: float = 0.01
    """Fall of the declared metric that a promotion still allows."""

    def __post_init__(self) -> None:
        if len(self.valid) != 2 or not self.valid[0] < self.valid[1]:
            raise ValueError(f"{self.name}: valid must be two ascending numbers")


@dataclass(frozen=True, kw_only=True, slots=True)
class ClassificationTask:
    """Classes of the catalog; the declared metric is AUROC."""

    name: str
    column: str
    """Text or whole numbers; or a number that ``edges`` cut into classes."""
    edges: tuple[float, ...] = ()
    """Where one class of a number ends and the next begins, ascending."""
    classes: tuple[str, ...] = ()
    """Names of the classes: in the order of ``edges``, or the values of the column to keep."""
    excluded: tuple[str, ...] = ()
    oracle: tuple[str, ...] = ()
    tolerance: float = 0.01

    def __post_init__(self) -> None:
        if list(self.edges) != sorted(set(self.edges)):
            raise ValueError(f"{self.name}: edges must ascend")
        if self.edges and len(self.classes) != len(self.edges) + 1:
            raise ValueError(f"{self.name}: {len(self.edges)} edges part "
                             f"{len(self.edges) + 1} classes; {len(self.classes)} are named")  # fmt: skip


LabelTask = RegressionTask | ClassificationTask


@dataclass(frozen=True, kw_only=True, slots=True)
class TransferTask:
    """A head taught on one survey's inputs and asked about another's, without further labels."""

    name: str
    labels: str
    """Name of the regression or classification task whose labels are used."""
    taught_on: str
    asked_on: str
    """Input sets."""
    tolerance: float = 0.02


@dataclass(frozen=True, kw_only=True, slots=True)
class SegmentationTask:
    """A map of the cutout, predicted from each image token's context vector; metric IoU."""

    name: str
    column: str
    """Lists of lists of numbers, foreground above ``threshold``; cut or padded to 96 x 96."""
    inputs: str = "image"
    token_key: str = "tok_image"
    threshold: float = 0.5
    objects: int = 1000
    """Most objects that are used."""
    tolerance: float = 0.01


@dataclass(frozen=True, kw_only=True, slots=True)
class SearchTask:
    """Nearest neighbours of a query: objects of its class, or itself in another modality."""

    name: str
    query: str
    """Input set of the query; ``text`` needs an alignment head that knows text."""
    among: str
    """Input set of the objects that are ranked."""
    labels: str = ""
    """Classification task: neighbours of the query's class are relevant. None: only itself is."""
    texts: tuple[str, ...] = ()
    """What is asked for each class, where the query is text; the names of the classes if absent."""
    queries: int = 300
    """Of each class; drawn at random."""
    k: int = 10
    tolerance: float = 0.02


@dataclass(frozen=True, kw_only=True, slots=True)
class HeadRun:
    """How heads learn."""

    names: tuple[HeadName, ...] = (
        "ridge_mean", "ridge_modalities", "kernel_modalities", "attentive",
    )  # fmt: skip
    hidden: int = 256
    epochs: int = 12
    """Of the MLP and of the attentive head."""
    queries: int = 4
    learning_rate: float = 2e-3
    weight_decay: float = 0.05
    dropout: float = 0.1
    batch: int = 64
    inner_share: float = 0.2
    """Share of the training rows, in whole sky blocks, by which heads are chosen."""


@dataclass(frozen=True, kw_only=True, slots=True)
class SupervisedRun:
    """The image network that is trained from scratch."""

    crop: int = 48
    """Pixels on a side that it sees."""
    width: int = 24
    batch: int = 32
    epochs: int = 15
    least_steps: int = 300
    """Few labels are seen more often than ``epochs`` times."""
    learning_rate: float = 3e-3
    weight_decay: float = 0.05
    folds: bool = True
    """Also train it on all labels of each fold, beside the low-data curves."""


@dataclass(frozen=True, kw_only=True, slots=True)
class LowDataRun:
    """Curves of quality against the number of labels."""

    labels: tuple[int, ...] = (10, 30, 100, 300, 1000, 3000, 10000)
    seeds: int = 5
    """Draws of labels for each number; every row is predicted in ``seeds / folds`` of them."""
    inputs: tuple[str, ...] = ()
    """Input sets whose vectors are drawn; all by default."""
    heads: tuple[HeadName, ...] = ("ridge_mean", "ridge_modalities", "kernel_modalities")
    supervised: tuple[int, ...] = (100, 300, 1000, 3000)
    """Numbers of labels that the supervised network is trained on."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Photometry:
    """Columns of the photometric baselines; those that a catalog lacks are left out."""

    fluxes: tuple[str, ...] = tuple(
        f"FLUX_{band}" for band in ("G", "R", "I", "Z", "W1", "W2", "W3", "W4")
    )
    softening: float = 0.1
    """Flux in its unit at which an asinh magnitude turns linear, about the survey's noise."""
    magnitudes: tuple[str, ...] = ()
    dust: tuple[str, ...] = ("EBV",)
    shapes: tuple[str, ...] = ("SHAPE_R", "SHAPE_E1", "SHAPE_E2")
    """Only in the baseline ``boosting_catalog``."""
    iterations: int = 300
    """Of boosting, at a learning rate of 0.05."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Evaluation:
    """Everything that one scorecard asks."""

    name: str
    regression: tuple[RegressionTask, ...] = ()
    classification: tuple[ClassificationTask, ...] = ()
    transfer: tuple[TransferTask, ...] = ()
    segmentation: tuple[SegmentationTask, ...] = ()
    search: tuple[SearchTask, ...] = ()
    inputs: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """Input set -> patterns of token keys; each pattern that a model knows must be there."""
    survey: str = "legacysurvey"
    most_rows: int = 10000
    """Objects that are evaluated, chosen by a hash of their ids; 0 for all."""
    folds: int = 5
    block_order: int = 4
    """HEALPix order of the sky blocks; finer where there would be too few of them."""
    least_blocks: int = 20
    resamples: int = 300
    """Of the sky blocks, for intervals."""
    reconstructed: int = 256
    """Objects whose cutouts are reconstructed by the image codec; 0 for none."""
    photometry: Photometry = field(default_factory=Photometry)
    heads: HeadRun = field(default_factory=HeadRun)
    control_heads: tuple[HeadName, ...] = ("ridge_mean", "ridge_modalities")
    """Heads of the random encoder and of shuffled labels."""
    supervised: SupervisedRun = field(default_factory=SupervisedRun)
    low_data: LowDataRun = field(default_factory=LowDataRun)

    def __post_init__(self) -> None:
        groups = (self.regression, self.classification, self.transfer, self.segmentation,
                  self.search)  # fmt: skip
        names = [task.name for group in groups for task in group]
        if twice := sorted({name for name in names if names.count(name) > 1}):
            raise ValueError(f"two tasks are named {', '.join(twice)}")
        if self.folds < 2 or self.resamples < 20:
            raise ValueError("at least 2 folds and 20 resamples are needed")
        asked = {t.taught_on for t in self.transfer} | {t.asked_on for t in self.transfer}
        asked |= {t.inputs for t in self.segmentation} | set(self.low_data.inputs)
        asked |= {name for t in self.search for name in (t.query, t.among)} - {"text"}
        if unknown := sorted(asked - set(self.inputs)):
            raise ValueError(f"input sets {', '.join(unknown)} are not declared under [inputs]")
        labels = {task.name for task in self.labelled}
        wanted = {t.labels for t in self.transfer} | {t.labels for t in self.search} - {""}
        if unknown := sorted(wanted - labels):
            raise ValueError(f"labels of {', '.join(unknown)}: no such task")

    @property
    def labelled(self) -> tuple[LabelTask, ...]:
        """Tasks that a head learns."""
        return (*self.regression, *self.classification)
