"""
Redshifts from 1,000 labels, with error bars
============================================

A probe is a linear model on the vectors. This page fits one to the redshifts of up to 1,000
galaxies, asks how good it is with fewer, and whether its error bars are true.
"""

# %%
# The survey and its vectors, made by the first page that needs them.

from pathlib import Path

import lsdb
import matplotlib.pyplot as plt
import numpy as np

import skyvec
from skyvec.mock.survey import write_mock_survey
from skyvec.surveys import chosen_survey

if not Path("sky").exists():
    write_mock_survey(Path("sky"), rows=1000, seed=1, workers=1)
numbers_only = chosen_survey("legacysurvey", id_column=None, image_column=None, without="image")
skyvec.run("sky", name="photometry", survey=numbers_only, workers=0)

labels = lsdb.open_catalog("sky", columns=["object_id", "ra", "dec", "Z"]).compute(
    progress_bar=False
)

# %%
# A probe
# -------
#
# All figures are of blocks of sky that were left out in turn, so that neighbours cannot help. The
# last is the same fit to shuffled redshifts: what chance gives.

probe = skyvec.Probe("Z", name="photoz").fit("sky", extension="photometry")
found = probe.metrics["Z"]
print(f"R2 {found['r2']:.3f} (95%: {found['r2_low']:.3f} to {found['r2_high']:.3f})")
print(f"outliers beyond 0.15 in dz/(1+z): {found['photoz']['outliers']:.1%}")
print(f"R2 with shuffled redshifts: {found['r2_shuffled']:.3f}")

# %%
# How many labels?
# ----------------
#
# The same probe from random parts of the labels, scored on the galaxies that were not in the part,
# three draws each.

rng = np.random.default_rng(0)
counts = [50, 100, 200, 400, 800]
scores = []
for count in counts:
    for _ in range(3):
        chosen = rng.permutation(len(labels)) < count
        small = skyvec.Probe("Z", name="photoz").fit(
            "sky", extension="photometry", labels=labels[chosen][["object_id", "Z"]]
        )
        told = small.apply("sky", extension="photometry").to_pandas().set_index("object_id")
        rest = labels[~chosen].set_index("object_id")
        error = told["photoz"].reindex(rest.index) - rest["Z"]
        scores.append((count, 1 - (error**2).mean() / rest["Z"].var(ddof=0)))

at, r2 = np.array(scores).T
figure, axes = plt.subplots(figsize=(6, 3.6), layout="constrained")
axes.plot(at, r2, "o", color="#0072b2", alpha=0.6)
axes.plot(counts, [r2[at == count].mean() for count in counts], color="#0072b2")
axes.set(
    xscale="log", xticks=counts, xticklabels=counts, xlabel="labels", ylabel="R2, other galaxies"
)
axes.minorticks_off()
plt.show()

# %%
# Error bars, and whether they are true
# -------------------------------------
#
# Intervals are conformal: as wide as the residuals of labelled galaxies of like prediction were.
# Ninety of a hundred should hold the true redshift. To see that, the probe learns from half of the
# sky and is judged on the other.

middle = labels["ra"].median()
west = labels[labels["ra"] < middle]
half = skyvec.Probe("Z", name="photoz").fit(
    "sky", extension="photometry", labels=west[["object_id", "Z"]]
)
told = half.apply("sky", extension="photometry").to_pandas().set_index("object_id")
east = labels[labels["ra"] >= middle].set_index("object_id").join(told, rsuffix="_told")
inside = (east["photoz_low"] <= east["Z"]) & (east["Z"] <= east["photoz_high"])
spread = (inside.mean() * (1 - inside.mean()) / len(inside)) ** 0.5
print(f"{inside.mean():.1%} +- {spread:.1%} of {len(east)} galaxies in their 90% interval")

figure, axes = plt.subplots(figsize=(5.4, 5), layout="constrained")
for kept, colour, name in ((inside, "#0072b2", "in its interval"), (~inside, "#d55e00", "outside")):
    part = east[kept].iloc[::3]
    bars = [part["photoz"] - part["photoz_low"], part["photoz_high"] - part["photoz"]]
    axes.errorbar(
        part["Z"], part["photoz"], np.array(bars), fmt="o", ms=3, lw=0.6, color=colour, label=name
    )
top = float(labels["Z"].quantile(0.995))
axes.plot([0, top], [0, top], color="#5b6672", lw=1)
axes.set(
    xlim=(0, top),
    ylim=(-0.2, top + 0.2),
    xlabel="true redshift",
    ylabel="photoz (every third galaxy)",
)
axes.legend()
plt.show()

# %%
# Columns make predicates
# -----------------------
#
# Applied to an LSDB catalog the probe adds lazy columns, and a question is one line.

sky = lsdb.open_catalog("sky", columns=["object_id", "ra", "dec"])
far = probe.apply(sky, extension="photometry").query("photoz > 0.7 and photoz_width < 0.5")
far.compute(progress_bar=False)[["object_id", "photoz", "photoz_low", "photoz_high"]].head()

# %%
# What this does not promise: these labels are a random part of the mock survey. A spectroscopic
# sample is not a random part of the sky, and coverage holds for galaxies like the labelled ones.
