"""Objects of a cutout <-> five tokens each: column, row, two ellipticities, radius.

Tables and tensor names are those of the published AION-1 catalog codec (``codecs/catalog``).
It differs on purpose: the published package never moves its codes behind the special codes of the
transformer's vocabulary (padding, start and the like), so that they would be looked up in the wrong
rows, and it fills absent objects up with 9999, which is no row at all. Here codes are those of the
vocabulary, and absent objects are tokens that are not valid.
"""

from __future__ import annotations

from typing import ClassVar, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from skyvec_core.codecs.codec import Codec
from skyvec_core.codecs.distributions import middles, require_codes
from skyvec_core.codecs.quantizers import QuantileTable
from skyvec_core.modalities import MODALITIES
from skyvec_core.observations import CutoutCatalogs, Observed, Tokens

# Shape letters: B object, O object of a cutout, N token, F field of an object (5), V code.

PIXELS = 96
"""Columns and rows of the cutout, each a code."""
QUANTILES = 1024
"""Codes of an ellipticity or radius; fixed, as the published constructor has them."""
SHAPES = ("SHAPE_E1", "SHAPE_E2", "SHAPE_R")
"""Names of the quantized fields in the folder's tensors."""
SIZES = (PIXELS, PIXELS, QUANTILES, QUANTILES, QUANTILES)
"""Codes of each field, in the order of an object's tokens."""
OFFSETS = (0, 96, 192, 1216, 2240)
"""First code of each field before the special codes."""
SPECIAL_CODES = 204
"""Codes of the transformer's vocabulary before the first code of this codec; 0 is padding."""
FILLING = 9999
"""What the official package writes for an absent object."""


class CatalogCodec(Codec):
    """Positions and shapes of the objects in a cutout as codes, object after object."""

    rows: ClassVar[int] = 256
    """Rows of an `encode` call that the caller pads to."""
    num_tokens: ClassVar[int] = MODALITIES["catalog"].num_tokens
    """Length of the sequence, 512: room for `max_objects`."""
    max_objects: ClassVar[int] = num_tokens // len(SIZES)
    """Objects of one cutout that become tokens, 102."""

    def __init__(self) -> None:
        super().__init__()
        fields = {name: _PixelIndex() for name in ("X", "Y")}
        tables = {name: QuantileTable(QUANTILES) for name in SHAPES}
        self._quantizer = nn.ModuleDict({"quantizers": nn.ModuleDict({**fields, **tables})})

    @property
    def tables(self) -> list[QuantileTable]:
        """The tables of the two ellipticities and the radius."""
        quantizers = cast("nn.ModuleDict", self._quantizer["quantizers"])
        return [cast("QuantileTable", quantizers[name]) for name in SHAPES]

    def fit(self, catalogs: CutoutCatalogs) -> None:
        """Fit the three tables to the present objects of a sample."""
        shapes = (catalogs.e1_BO, catalogs.e2_BO, catalogs.radius_BO)
        for table, values_BO in zip(self.tables, shapes, strict=True):
            table.fit(values_BO[catalogs.present_BO])

    def encode(self, observed: Observed, *, compat: bool = False) -> Tokens:
        """Tokens (B, 512) in the transformer's vocabulary, five for each object.

        Positions are rounded to whole pixels. An object counts if it is present, its position lies
        within the cutout and all its numbers are finite. Objects that do not count are left out and
        the next ones move up; of the others the first `max_objects` become tokens. AION-1 itself
        was taught with sequences of at most 50 tokens, which are 10 objects.

        Parameters
        ----------
        compat
            Raw codes (B, 5 O) of the official package, all valid: not moved behind the special
            codes, nothing left out, 9999 where an object is not present.

        Raises
        ------
        TypeError
            If it is no `CutoutCatalogs`.
        ValueError
            If ``compat`` and a present object has no finite position, which has no official code.
        """
        if not isinstance(observed, CutoutCatalogs):
            raise TypeError(
                f"a catalog codec takes CutoutCatalogs, found {type(observed).__name__}"
            )
        values_BOF = _values_of(observed)
        positions_BO2 = values_BOF[..., :2].round()
        present_BO = observed.present_BO
        if compat:
            if not bool(torch.isfinite(positions_BO2)[present_BO].all()):
                raise ValueError("a present object has no position: mark it as not present")
            raw_BOF = torch.where(present_BO[..., None], self._codes(values_BOF), FILLING)
            return Tokens(
                ids_BN=raw_BOF.flatten(1),
                valid_BN=torch.ones_like(raw_BOF, dtype=torch.bool).flatten(1),
            )
        inside_BO = ((positions_BO2 >= 0) & (positions_BO2 < PIXELS)).all(-1)
        counts_BO = present_BO & inside_BO & torch.isfinite(values_BOF).all(-1)
        # A stable sort closes the gaps and keeps the order of the objects that count.
        order_BO = (~counts_BO).to(torch.int8).argsort(dim=1, stable=True)[:, : self.max_objects]
        valid_BO = counts_BO.gather(1, order_BO)
        codes_BOF = (self._codes(values_BOF) + SPECIAL_CODES).take_along_dim(order_BO[..., None], 1)
        codes_BOF = torch.where(valid_BO[..., None], codes_BOF, 0)
        ids_BN = codes_BOF.flatten(1)
        valid_BN = valid_BO.repeat_interleave(len(SIZES), dim=1)
        empty = (0, self.num_tokens - ids_BN.shape[1])
        return Tokens(
            ids_BN=functional.pad(ids_BN, empty), valid_BN=functional.pad(valid_BN, empty)
        )

    def decode(self, ids_BN: Tensor, *, compat: bool = False) -> CutoutCatalogs:
        """Objects (B, N // 5) in pixels and arcsec; NaN where there is none.

        Five ids are an object if each is a code of its own field; special codes (padding is 0) and
        codes of another field make it absent. Shapes are the middles of their codes' intervals.

        Parameters
        ----------
        compat
            Raw codes of the official package, with upper edges for shapes and -1 for a field whose
            code is not its own (such as 9999).

        Raises
        ------
        TypeError, ValueError
            If an id lies outside the vocabulary, or ``ids_BN`` is not two-dimensional.
        """
        if ids_BN.ndim != 2:
            raise ValueError(f"a catalog codec decodes ids (B, N), found {tuple(ids_BN.shape)}")
        special = 0 if compat else SPECIAL_CODES
        num_codes = FILLING + 1 if compat else SPECIAL_CODES + sum(SIZES)
        require_codes(ids_BN, num_codes, what="catalog codec")
        whole = ids_BN.shape[1] // len(SIZES) * len(SIZES)
        ids_BOF = ids_BN[:, :whole].long().reshape(len(ids_BN), -1, len(SIZES))
        codes_BOF = ids_BOF - special - torch.tensor(OFFSETS, device=ids_BN.device)
        sizes_F = torch.tensor(SIZES, device=ids_BN.device)
        own_BOF = (codes_BOF >= 0) & (codes_BOF < sizes_F)
        present_BO = own_BOF.all(-1)
        shown_BOF = own_BOF if compat else present_BO[..., None].expand_as(own_BOF)
        values = [codes_BOF[..., 0].float(), codes_BOF[..., 1].float()]
        for field, table in enumerate(self.tables, start=2):
            values_V = table.values if compat else middles(table.values)
            values.append(values_V[codes_BOF[..., field].clamp(0, QUANTILES - 1)])
        absent = -1.0 if compat else torch.nan
        x, y, e1, e2, radius = torch.where(shown_BOF, torch.stack(values, dim=-1), absent).unbind(
            -1
        )
        return CutoutCatalogs(
            x_BO=x, y_BO=y, e1_BO=e1, e2_BO=e2, radius_BO=radius, present_BO=present_BO
        )

    def _codes(self, values_BOF: Tensor) -> Tensor:
        """Codes (B, O, F) of each field, moved by its offset; positions as they come, if finite."""
        x, y = values_BOF[..., :2].round().nan_to_num(0.0, 0.0, 0.0).long().unbind(-1)
        shapes = (
            table.codes(values_BO)
            for table, values_BO in zip(self.tables, values_BOF[..., 2:].unbind(-1), strict=True)
        )
        offsets_F = torch.tensor(OFFSETS, device=values_BOF.device)
        return torch.stack([x, y, *shapes], dim=-1) + offsets_F


class _PixelIndex(nn.Module):
    """A whole pixel is its own code; the published folders keep only their number."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("_codebook_size", torch.tensor(PIXELS))


def _values_of(catalogs: CutoutCatalogs) -> Tensor:
    """Fields (B, O, F), float32."""
    parts = (catalogs.x_BO, catalogs.y_BO, catalogs.e1_BO, catalogs.e2_BO, catalogs.radius_BO)
    return torch.stack([part.float() for part in parts], dim=-1)
