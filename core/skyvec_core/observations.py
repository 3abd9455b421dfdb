"""Observations of several objects, one entry for each modality, with what was really observed."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields, replace

import torch
from torch import Tensor

from skyvec_core.modalities import MODALITIES

# Shape letters: B object, C band, H W cutout pixels, L wavelength sample, O object of a cutout,
# N tokens of one modality.


@dataclass(frozen=True, kw_only=True, slots=True)
class Images:
    """Cutouts of B objects in one survey, on one pixel grid."""

    flux_BCHW: Tensor
    """Flux per pixel in the survey's unit; the value of a bad pixel is never read."""
    good_BCHW: Tensor
    """True where the pixel was observed and is good; False in padding."""
    bands: tuple[str, ...]
    """Codec band names, e.g. ``DES-G``, one for each of the C planes."""

    def __post_init__(self) -> None:
        _require_tensors(self)
        if self.flux_BCHW.shape != self.good_BCHW.shape:
            raise ValueError(
                f"flux {tuple(self.flux_BCHW.shape)} and good {tuple(self.good_BCHW.shape)} differ"
            )
        if self.flux_BCHW.shape[1] != len(self.bands):
            raise ValueError(f"{self.flux_BCHW.shape[1]} planes but bands {self.bands}")


@dataclass(frozen=True, kw_only=True, slots=True)
class Spectra:
    """One-dimensional spectra of B objects, each row on its own wavelengths.

    Rows shorter than L are filled up at their end: filling has ``good`` False and a wavelength
    that is NaN or not positive.
    """

    flux_BL: Tensor
    """Flux density in the survey's unit (1e-17 erg/s/cm2/A)."""
    ivar_BL: Tensor
    """Inverse variance of the flux; 0 where there is no information."""
    good_BL: Tensor
    """True where the sample was observed and is good."""
    wavelength_BL: Tensor
    """Wavelength in Angstrom, ascending along each row."""

    def __post_init__(self) -> None:
        _require_tensors(self)
        shapes = {name: tuple(getattr(self, name).shape) for name in self.__slots__}
        if len(set(shapes.values())) > 1:
            raise ValueError(f"the parts of Spectra differ in shape: {shapes}")
        if self.good_BL.dtype != torch.bool:
            raise TypeError(f"good_BL must be bool, found {self.good_BL.dtype}")


@dataclass(frozen=True, kw_only=True, slots=True)
class CutoutCatalogs:
    """Positions and shapes of the objects in each of B cutouts, nearest to the centre first."""

    x_BO: Tensor
    """Column of the object in the 96 x 96 cutout, in pixels."""
    y_BO: Tensor
    """Row of the object, in pixels."""
    e1_BO: Tensor
    """First component of the ellipticity."""
    e2_BO: Tensor
    """Second component of the ellipticity."""
    radius_BO: Tensor
    """Half-light radius in arcsec."""
    present_BO: Tensor
    """True where the row holds an object, False where it is filled up."""

    def __post_init__(self) -> None:
        _require_tensors(self)
        shapes = {name: tuple(getattr(self, name).shape) for name in self.__slots__}
        if len(set(shapes.values())) > 1:
            raise ValueError(f"the parts of CutoutCatalogs differ in shape: {shapes}")
        if self.present_BO.dtype != torch.bool:
            raise TypeError(f"present_BO must be bool, found {self.present_BO.dtype}")


@dataclass(frozen=True, kw_only=True, slots=True)
class Tokens:
    """Codes of B objects for one modality."""

    ids_BN: Tensor
    """Codes, int64; meaningless where not valid."""
    valid_BN: Tensor
    """True where the token stands for something that was observed."""


Observed = Images | Spectra | CutoutCatalogs | Tensor
"""What a codec takes: a float tensor is (B,) scalars, (B, 55) coefficients or a (B, H, W) map, with
NaN where nothing was measured."""

Observations = Mapping[str, Observed]
"""Token key -> observations of the same B objects."""

TokenSet = Mapping[str, Tokens]
"""Token key -> `Tokens`; every entry has the same number of objects."""


def require_kind(token_key: str, observed: object, *, same_survey: bool = True) -> None:
    """Refuse observations that the modality does not take.

    Parameters
    ----------
    same_survey
        Also refuse bands of another survey than the modality's.

    Raises
    ------
    TypeError
        If it is of another kind, a numpy array included.
    ValueError
        If a tensor has the wrong axes, or bands are of another survey.
    """
    kind = MODALITIES[token_key].kind
    wanted = {"image": Images, "spectrum": Spectra, "catalog": CutoutCatalogs}.get(kind, Tensor)
    if not isinstance(observed, wanted):
        remedy = "; use torch.from_numpy" if wanted is Tensor else ""
        raise TypeError(
            f"{token_key} takes {wanted.__name__}, found {type(observed).__name__}{remedy}"
        )
    if isinstance(observed, Tensor):
        count = MODALITIES[token_key].num_tokens
        axes = {"coefficients": f"(B, {count})", "map": "(B, H, W)"}.get(kind, "(B,) or (B, 1)")
        shape = tuple(observed.shape)
        fits = {"coefficients": shape[1:] == (count,), "map": len(shape) == 3}.get(
            kind, len(shape) >= 1 and shape[1:] in {(), (1,)}
        )
        if not fits:
            remedy = "; fill up with NaN" if kind == "coefficients" else ""
            raise ValueError(f"{token_key} takes {axes}, found {shape}{remedy}")
    if isinstance(observed, Images) and same_survey:
        prefix = {"hsc": "HSC"}.get(MODALITIES[token_key].survey, "DES")
        if foreign := [band for band in observed.bands if band.startswith(_OTHER[prefix])]:
            raise ValueError(
                f"{token_key} takes bands {prefix}-..., found {', '.join(foreign)}; HSC cutouts go "
                "under tok_image_hsc, Legacy Survey ones under tok_image"
            )


_OTHER = {"HSC": "DES-", "DES": "HSC-"}


def count_of(observed: Observed) -> int:
    """Number of objects."""
    return len(observed) if isinstance(observed, Tensor) else len(_parts(observed)[0][1])


def pieces(observed: Observed, rows: int) -> Iterator[tuple[Observed, int]]:
    """Pieces of ``rows`` objects each and how many of them are real.

    The last piece is filled up with zeros (False), so that all have one shape. No objects at all
    are one piece of which none is real.
    """
    count = count_of(observed)
    for start in range(0, max(count, 1), rows):
        real = min(rows, count - start)
        if isinstance(observed, Tensor):
            yield _piece(observed, start, rows), real
        else:
            parts = {name: _piece(part, start, rows) for name, part in _parts(observed)}
            yield _with(observed, parts), real


def to_device(observed: Observed, device: torch.device) -> Observed:
    """The same observations on a device; on a GPU copied from pinned memory without waiting."""
    if isinstance(observed, Tensor):
        return moved(observed, device)
    return _with(observed, {name: moved(part, device) for name, part in _parts(observed)})


def _require_tensors(observed: Images | Spectra | CutoutCatalogs) -> None:
    for field in fields(observed):
        part = getattr(observed, field.name)
        if field.name != "bands" and not isinstance(part, Tensor):
            raise TypeError(
                f"{field.name} must be a torch tensor, found {type(part).__name__}; "
                "use torch.from_numpy"
            )


def moved(part: Tensor, device: torch.device) -> Tensor:
    """A tensor on a device; to a GPU through pinned memory, so that nobody waits for the copy."""
    if device.type != "cuda" or part.is_cuda:
        return part.to(device)
    return part.pin_memory().to(device, non_blocking=True)


def _piece(part: Tensor, start: int, rows: int) -> Tensor:
    chosen = part[start : start + rows]
    if len(chosen) == rows:
        return chosen
    return torch.cat([chosen, chosen.new_zeros((rows - len(chosen), *part.shape[1:]))])


def _parts(observed: Images | Spectra | CutoutCatalogs) -> list[tuple[str, Tensor]]:
    named = ((field.name, getattr(observed, field.name)) for field in fields(observed))
    return [(name, part) for name, part in named if isinstance(part, Tensor)]


def fit_to_grid(flux: Tensor, good: Tensor, *, size: int) -> tuple[Tensor, Tensor]:
    """Centre crop, or pad with bad pixels, to ``size`` x ``size``; never resamples.

    Parameters
    ----------
    flux, good
        (..., H, W), float and bool.
    size
        Pixels on a side of the result. The crop starts at ``(H - size) // 2`` (as AION-1's).

    Returns
    -------
    tuple
        New tensors (..., size, size); padding has flux 0 and good False.
    """
    height, width = flux.shape[-2:]
    top, left = (height - size) // 2, (width - size) // 2
    if top >= 0 and left >= 0:
        window = (..., slice(top, top + size), slice(left, left + size))
        return flux[window].clone(), good[window].clone()
    cropped_flux = flux[..., max(top, 0) : max(top, 0) + size, max(left, 0) : max(left, 0) + size]
    cropped_good = good[..., max(top, 0) : max(top, 0) + size, max(left, 0) : max(left, 0) + size]
    rows, columns = cropped_flux.shape[-2:]
    into = (..., slice((size - rows) // 2, (size - rows) // 2 + rows),
            slice((size - columns) // 2, (size - columns) // 2 + columns))  # fmt: skip
    flux_out = flux.new_zeros((*flux.shape[:-2], size, size))
    good_out = good.new_zeros((*flux.shape[:-2], size, size))
    flux_out[into], good_out[into] = cropped_flux, cropped_good
    return flux_out, good_out


def _with(
    observed: Images | Spectra | CutoutCatalogs, parts: Mapping[str, Tensor]
) -> Images | Spectra | CutoutCatalogs:
    return replace(observed, **parts)  # type: ignore[arg-type]  # same names as it came with
