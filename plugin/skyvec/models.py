"""Names of models -> folders: the model in the package, a local folder, or the Hugging Face hub."""

from __future__ import annotations

import json
import re
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, get_args

from skyvec_schemas.errors import ConfigurationError, WeightsError

if TYPE_CHECKING:
    from skyvec_core.embedder import Model, Precision

DEFAULT = "skyvec-tiny"
"""The model that comes with the package."""
_PIN = re.compile(r"^(?P<place>.*)#(?P<digest>[0-9a-f]{12,64})$")
_HUB = re.compile(r"^hf://(?P<repo>[\w.-]+/[\w.-]+)@(?P<revision>[0-9a-f]{7,40})$")


def packaged_models() -> dict[str, Path]:
    """Models inside the package, by name."""
    home = Path(str(resources.files("skyvec") / "weights"))
    return {place.parent.name: place.parent for place in sorted(home.glob("*/config.json"))}


def pinned(name_or_path: str | Path) -> tuple[str, str]:
    """The name or path of a model without its ``#digest``, and the digest (empty if there is none)."""
    text = str(name_or_path)
    match = _PIN.match(text)
    return (match["place"], match["digest"]) if match else (text, "")


def require_pin(name_or_path: str | Path, model: Model) -> None:
    """Refuse a remote model whose weights are not named by their digest: a run must be repeatable.

    Raises
    ------
    WeightsError
        Says the name to use.
    """
    place, digest = pinned(name_or_path)
    if place.startswith("hf://") and not digest:
        raise WeightsError(
            "a remote model needs its digest as well as its revision",
            where=place,
            remedy=f"If these weights are the right ones, write {place}#{model.digest[:16]}",
        )


def model_folder(name_or_path: str | Path) -> Path:
    """Folder of a model.

    Parameters
    ----------
    name_or_path
        ``skyvec-tiny``, a folder in the AION-1 layout, or ``hf://owner/name@revision``, which
        downloads through huggingface_hub (safetensors and JSON only). ``#digest`` may follow; see
        `load_model`.

    Raises
    ------
    WeightsError
        Names the place and what was looked for.
    """
    text, _ = pinned(name_or_path)
    known = packaged_models()
    if text in known:
        return known[text]
    if text.startswith("hf://"):
        return _from_hub(text)
    folder = Path(text)
    if not (folder / "config.json").is_file():
        raise WeightsError(
            "neither a model of the package nor a folder with config.json",
            where=text,
            remedy=f"Known models: {', '.join(known)}; or give a folder, or hf://owner/name@revision",
        )
    return folder


def load_model(
    name_or_path: str | Path = DEFAULT,
    *,
    device: str = "cpu",
    precision: Precision = "float32",
    compat: bool = False,
    compiled: bool = False,
) -> Model:
    """Load a model for inference.

    Parameters
    ----------
    name_or_path
        See `model_folder`. What follows a ``#`` is the start of the digest that it must have (12
        hexadecimal digits or more).
    device
        ``cpu`` or ``cuda:0``.
    precision
        ``float32``, or ``bfloat16``; docs/speed.md has what that gains and costs.
    compat
        Give the numbers of the official AION-1 package also where it is wrong; docs/aion.md lists
        the differences.
    compiled
        Run the encoder through ``torch.compile``, on a GPU as CUDA graphs.

    Raises
    ------
    WeightsError
        If the folder is not there, incomplete, of another architecture, or of another digest.
    ConfigurationError
        If torch does not see the device.
    """
    from safetensors import SafetensorError

    from skyvec_core.embedder import Model, Precision

    folder = model_folder(name_or_path)
    _refuse_absent_device(device)
    if precision not in get_args(Precision):
        raise ConfigurationError(
            "is not a precision",
            where=f"precision {precision}",
            remedy=f"Use {' or '.join(get_args(Precision))}",
        )
    _, digest = pinned(name_or_path)
    try:
        model = Model.load(
            folder,
            name=folder.name,
            device=device,
            precision=precision,
            compat=compat,
            compiled=compiled,
        )
    except (OSError, ValueError, SafetensorError) as problem:
        raise WeightsError(
            str(problem).splitlines()[0],
            where=str(folder),
            remedy="The folder is incomplete or of another architecture; download it again",
        ) from problem
    if not model.digest.startswith(digest):
        raise WeightsError(
            f"digest is {model.digest[: len(digest)]}, not {digest}",
            where=str(folder),
            remedy="These are other weights than were asked for; do not use them, or correct the name",
        )
    return model


def _refuse_absent_device(device: str) -> None:
    import torch

    try:
        kind = torch.device(device).type
    except RuntimeError as problem:
        raise ConfigurationError(
            "is not a torch device", where=f"--device {device}", remedy="Use cpu or cuda:0"
        ) from problem
    if kind == "cuda" and not torch.cuda.is_available():
        raise ConfigurationError(
            "torch sees no GPU here", where=f"--device {device}", remedy="Use --device cpu"
        )


def model_card(folder: Path) -> dict[str, object]:
    """How a model came about, if its folder says so."""
    path = folder / "card.json"
    return dict(json.loads(path.read_text())) if path.is_file() else {}


def _from_hub(text: str) -> Path:
    match = _HUB.match(text)
    if match is None:
        raise WeightsError(
            "a hub model needs a pinned revision",
            where=text,
            remedy="Write hf://owner/name@revision with a commit hash",
        )
    try:
        from huggingface_hub import snapshot_download
    except ModuleNotFoundError as problem:
        raise WeightsError(
            "huggingface_hub is not installed", where=text, remedy="pip install huggingface_hub"
        ) from problem
    try:
        folder = snapshot_download(
            match["repo"],
            revision=match["revision"],
            allow_patterns=["*.json", "*.safetensors", "README.md"],
        )
    except Exception as problem:  # the hub's errors share no base class
        raise WeightsError(
            f"download failed ({type(problem).__name__})",
            where=text,
            remedy="Check the name, the revision and the network, or give a local copy",
        ) from problem
    return Path(folder)
