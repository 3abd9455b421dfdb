"""Checks on cutouts: bands, shapes, mask polarity, pixel scale, centring, empty stamps."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter

from skyvec.releases.hats.column_map import band_order
from skyvec.releases.lint.finding import Finding
from skyvec.releases.lint.subject import Row, Subject, floats, share

MIN_STAMPS = 3
"""One bad stamp is no bad release."""
MAX_SCALE_OFFSET = 0.05
"""Relative; beyond it a codec sees galaxies of another size."""
_MIN_CENTRED = 8
_MIN_DEAD = 50


def bands(subject: Subject) -> Iterator[Finding]:
    """Names of the planes: known, complete, the same for all rows, as many as planes."""
    image = subject.survey.image
    if not image:
        return
    orders: Counter[tuple[str, ...]] = Counter()
    first: dict[tuple[str, ...], Row] = {}
    for row, names in subject.rows("image.band"):
        order = tuple(str(name) for name in np.atleast_1d(names))
        if order:
            orders[order] += 1
            first.setdefault(order, row)
    wanted = list(image.bands)
    total = sum(orders.values())
    for order, count in orders.items():
        if band_order(list(order), image) is None:
            yield subject.finding(
                "error" if count > 0.5 * total else "warning", "bands",
                f"{count:,} of {total:,} cutouts have bands {', '.join(order)} where the survey has "
                f"{', '.join(wanted)}",
                where=first[order], column="band",
                remedy="Rename the bands, or choose the survey that these cutouts are of",
                evidence={"rows": count, "of": total},
            )  # fmt: skip
    known = [order for order in orders if band_order(list(order), image) is not None]
    if len(known) > 1:
        yield subject.finding(
            "warning", "bands", f"{len(known)} orders of bands: {', '.join(known[0])} and "
            f"{', '.join(known[1])}", where=first[known[1]], column="band",
            remedy="HATS is read row by row; in HDF5 give every file one order",
            evidence={" ".join(order): orders[order] for order in known},
        )  # fmt: skip
    elif known and [n.lower() for n in known[0]] not in (
        [n.lower() for n in wanted], [n.lower() for n in image.bands.values()]
    ):  # fmt: skip
        yield subject.finding(
            "note", "bands", f"stored as {', '.join(known[0])}; read in the survey's order",
            where=first[known[0]], column="band",
        )  # fmt: skip
    yield from _planes(subject, named=bool(orders))


def _planes(subject: Subject, *, named: bool) -> Iterator[Finding]:
    image = subject.survey.image
    stamps = list(subject.rows("image.flux"))
    if not image or not stamps:
        return
    wanted = len(image.bands)
    odd = [(row, flux) for row, flux in stamps if len(flux) and len(flux) != wanted]
    if odd:
        yield subject.finding(
            "error" if len(odd) > 0.5 * len(stamps) else "warning", "bands",
            f"{len(odd):,} of {len(stamps):,} cutouts have {len(odd[0][1])} planes for "
            f"{wanted} bands", where=odd[0][0], column="flux",
            remedy="Give one plane for each band of the survey", evidence={"rows": len(odd)},
        )  # fmt: skip
    elif not named:
        yield subject.finding(
            "warning", "bands", f"planes have no names; taken as {', '.join(image.bands)}",
            where=stamps[0][0].file, remedy="Store the bands of every cutout beside its planes",
        )  # fmt: skip


def shapes(subject: Subject) -> Iterator[Finding]:
    """Cutouts smaller than the window, not square, ragged, or unlike their ivar and mask."""
    stamps = list(subject.rows("image.flux"))
    if not stamps:
        return
    ragged = [row for row, flux in stamps if flux.ndim != 3 or not flux.size]
    if ragged:
        yield subject.finding(
            "error" if len(ragged) == len(stamps) else "warning", "cutout size",
            f"{len(ragged):,} of {len(stamps):,} cutouts are empty, or their planes differ in size",
            where=ragged[0], column="flux", remedy="No vector is made of them: cut them again",
            evidence={"rows": len(ragged)},
        )  # fmt: skip
    whole = [(row, flux) for row, flux in stamps if flux.ndim == 3 and flux.size]
    if not whole:
        return
    sides = Counter(flux.shape[1:] for _, flux in whole)
    small = sum(n for side, n in sides.items() if min(side) < subject.window)
    if small:
        side = min(sides, key=min)
        covered = np.prod([min(s, subject.window) for s in side]) / subject.window**2
        yield subject.finding(
            "warning", "cutout size",
            f"{small:,} of {len(whole):,} cutouts are smaller than the codec's window of "
            f"{subject.window} pixels: {side[0]} x {side[1]} covers {covered:.0%} of it",
            where=next(row for row, flux in whole if flux.shape[1:] == side), column="flux",
            remedy="The rest is masked; cut larger stamps if you can",
            evidence={"smallest": min(side), "rows": small},
        )  # fmt: skip
    if oblong := [row for row, flux in whole if flux.shape[1] != flux.shape[2]]:
        yield subject.finding(
            "warning", "cutout size", f"{len(oblong):,} of {len(whole):,} cutouts are not square",
            where=oblong[0], column="flux", remedy="The middle is used", evidence={"rows": len(oblong)},
        )  # fmt: skip
    yield from _parts(subject, whole)


def _parts(subject: Subject, whole: list[tuple[Row, NDArray[Any]]]) -> Iterator[Finding]:
    for name in ("ivar", "mask"):
        differ = []
        for row, flux in whole:
            part = row.array(f"image.{name}")
            if part is not None and part.shape not in (flux.shape, flux.shape[1:]):
                differ.append((row, part.shape, flux.shape))
        if differ:
            row, found, wanted = differ[0]
            yield subject.finding(
                "error" if len(differ) == len(whole) else "warning", "cutout size",
                f"{name} is {found} where flux is {wanted}", where=row, column=name,
                remedy="Every pixel needs its own", evidence={"rows": len(differ)},
            )  # fmt: skip


def empty_stamps(subject: Subject) -> Iterator[Finding]:
    """Stamps that are zero or NaN throughout, in all bands or in one."""
    stamps = [(row, flux) for row, flux in subject.rows("image.flux") if flux.ndim == 3]
    blank = [(row, ~(np.nan_to_num(f) != 0).any(axis=(1, 2))) for row, f in stamps if f.size]
    whole = [row for row, planes in blank if planes.all()]
    if whole:
        yield subject.finding(
            "error" if len(whole) > 0.5 * len(blank) and len(blank) >= MIN_STAMPS else "warning",
            "empty", f"{len(whole):,} of {len(blank):,} cutouts are zero or NaN throughout",
            where=whole[0], column="flux", remedy="Were they outside of the footprint?",
            evidence={"empty": share(len(whole), len(blank))},
        )  # fmt: skip
    partly = [row for row, planes in blank if planes.any() and not planes.all()]
    if partly:
        yield subject.finding(
            "warning" if len(partly) > 0.1 * len(blank) else "note", "empty",
            f"{len(partly):,} of {len(blank):,} cutouts lack a band (zero or NaN throughout)",
            where=partly[0], column="flux", remedy="Zeros count as dark sky unless they are masked",
            evidence={"lack_a_band": share(len(partly), len(blank))},
        )  # fmt: skip


def mask_polarity(subject: Subject) -> Iterator[Finding]:
    """Whether True marks what the survey says, judged by pixels that cannot be good."""
    image = subject.survey.image
    if not image:
        return
    live_marked = live = dead_marked = dead = stamps = 0
    first = None
    for row, flux in subject.rows("image.flux"):
        mask = row.array("image.mask")
        if mask is None or flux.ndim != 3 or mask.shape not in (flux.shape, flux.shape[1:]):
            continue
        marked = np.broadcast_to(mask.astype(np.bool_) == image.mask_is_good, flux.shape)
        unusable = _dead(row, flux)
        stamps += 1
        first = first or row
        dead += int(unusable.sum())
        live += int((~unusable).sum())
        dead_marked += int(marked[unusable].sum())
        live_marked += int(marked[~unusable].sum())
    if first is None or stamps < MIN_STAMPS or not live:
        return
    good_live, good_dead = share(live_marked, live), share(dead_marked, dead)
    evidence = {"pixels_with_data_marked_good": good_live, "stamps": stamps,
                "pixels_without_data_marked_good": good_dead, "pixels_without_data": dead}  # fmt: skip
    says = f"True is to mean {'good' if image.mask_is_good else 'bad'}"
    if dead >= _MIN_DEAD and good_dead > 0.9 and good_live < 0.1:
        yield subject.finding(
            "error", "mask polarity", f"inverted ({says}): marked good are {good_dead:.0%} of pixels "
            f"without data and {good_live:.0%} of those with data", where=first.file, column="mask",
            remedy="Invert the mask on import", evidence=evidence,
        )  # fmt: skip
    elif good_live < 0.05:
        yield subject.finding(
            "error", "mask polarity",
            f"{good_live:.1%} of pixels with data are marked good ({says}): inverted, or all is bad",
            where=first.file, column="mask", remedy="Invert the mask on import, or leave it out",
            evidence=evidence,
        )  # fmt: skip


def _dead(row: Row, flux: NDArray[Any]) -> NDArray[np.bool_]:
    """Pixels that hold no measurement whatever the mask says."""
    unusable: NDArray[np.bool_] = ~np.isfinite(flux)
    ivar = row.array("image.ivar")
    if ivar is not None and ivar.shape == flux.shape:
        unusable |= ~(np.isfinite(ivar) & (ivar > 0))
    return unusable


def inverse_variance(subject: Subject) -> Iterator[Finding]:
    """Inverse variances below zero or NaN."""
    rows = list(subject.rows("image.ivar"))
    odd = [row for row, ivar in rows if (np.isnan(floats(ivar)) | (floats(ivar) < 0)).any()]
    if odd:
        yield subject.finding(
            "note", "ivar", f"{len(odd):,} of {len(rows):,} cutouts have negative or NaN inverse "
            "variances", where=odd[0], column="ivar", remedy="Not used by the codec",
            evidence={"rows": len(odd)},
        )  # fmt: skip


def pixel_scale(subject: Subject) -> Iterator[Finding]:
    """Arcseconds per pixel, stated beside the cutouts or in headers, against the survey's."""
    image = subject.survey.image
    if not image:
        return
    stated = [(row, floats(np.atleast_1d(s))) for row, s in subject.rows("image.scale")]
    values = [(row.file, float(np.median(s[s > 0]))) for row, s in stated if (s > 0).any()]
    values += [(f, float(f.facts["scale"])) for f in subject.files if "scale" in f.facts]
    off = [(f, v) for f, v in values if abs(v / image.pixel_scale - 1) > MAX_SCALE_OFFSET]
    if off:
        yield subject.finding(
            "error" if len(off) > 0.5 * len(values) else "warning", "pixel scale",
            f"{len(off):,} of {len(values):,} say {off[0][1]:.4g} arcsec per pixel, the survey has "
            f"{image.pixel_scale:g}", where=off[0][0], column="scale",
            remedy="Resample the cutouts, or choose the survey that they are of",
            evidence={"scale": round(off[0][1], 5), "survey": image.pixel_scale, "rows": len(off)},
        )  # fmt: skip
    unknown = sum(not (s > 0).any() for _, s in stated)
    if unknown:
        yield subject.finding(
            "note", "pixel scale", f"unknown for {unknown:,} of {len(stated):,} cutouts; taken as "
            f"{image.pixel_scale:g}", where=stated[0][0].file, column="scale",
        )  # fmt: skip


def centring(subject: Subject) -> Iterator[Finding]:
    """Whether the stamps have an object in their middle, or all of them at another place."""
    sides = Counter(f.shape[1:] for _, f in subject.rows("image.flux") if f.ndim == 3 and f.size)
    if not sides:
        return
    shape, count = sides.most_common(1)[0]
    if count < _MIN_CENTRED or min(shape) < 16:
        return
    found = [(row, _detected(f)) for row, f in subject.rows("image.flux") if f.shape[1:] == shape]
    detected = np.mean([seen for _, seen in found], axis=0)
    middle = [side // 2 for side in shape]
    reach = max(3, min(shape) // 20)
    around = (slice(middle[0] - reach, middle[0] + reach + 1),
              slice(middle[1] - reach, middle[1] + reach + 1))  # fmt: skip
    at_peak, at_middle = float(detected.max()), float(detected[around].max())
    if at_peak >= 0.6 and at_middle <= 0.3:
        # Detections are plateaus, so their highest part has a middle rather than a peak.
        rows, columns = np.nonzero(detected >= 0.95 * at_peak)
        offset = [round(float(rows.mean())) - middle[0], round(float(columns.mean())) - middle[1]]
        yield subject.finding(
            "error", "centring", f"{at_peak:.0%} of cutouts have an object {offset[1]:+d}, "
            f"{offset[0]:+d} pixels (x, y) from the middle, {at_middle:.0%} one in the middle",
            where=found[0][0].file, column="flux",
            remedy="The codec sees the middle: cut stamps around the positions",
            evidence={"dx": offset[1], "dy": offset[0], "there": round(at_peak, 3),
                      "in_the_middle": round(at_middle, 3), "stamps": count},
        )  # fmt: skip


def _detected(flux: NDArray[Any]) -> NDArray[np.bool_]:
    """Pixels of the sum of bands (each over its noise) that stand out by 5 sigma."""
    planes = np.nan_to_num(floats(flux))
    sky = np.median(planes, axis=(1, 2), keepdims=True)
    noise = 1.4826 * np.median(np.abs(planes - sky), axis=(1, 2), keepdims=True)
    ratio = np.divide(planes - sky, noise, out=np.zeros_like(planes), where=noise > 0)
    smooth = gaussian_filter(ratio.sum(axis=0), 1.5)
    spread = 1.4826 * np.median(np.abs(smooth - np.median(smooth)))
    return (
        smooth > np.median(smooth) + 5 * spread if spread > 0 else np.zeros(smooth.shape, np.bool_)
    )


IMAGE_CHECKS = (
    bands, shapes, empty_stamps, mask_polarity, inverse_variance, pixel_scale, centring
)  # fmt: skip
