"""
Add columns to a catalog
========================

A catalog goes in, the same rows come out, and beside them one vector for each galaxy, made of its
fluxes and shapes. Nothing of the catalog is rewritten: the vectors are a catalog of their own,
which LSDB joins by name.
"""

# %%
# The catalog
# -----------
#
# 1,000 galaxies of the mock survey with images in four bands, fluxes, shapes and redshifts. Any
# HATS catalog with these columns will do in its place.

from pathlib import Path

import lsdb
import matplotlib.pyplot as plt
import numpy as np

import skyvec
from skyvec.mock.survey import write_mock_survey
from skyvec.stage.selection import Selection
from skyvec.surveys import chosen_survey

if not Path("sky").exists():
    write_mock_survey(Path("sky"), rows=1000, seed=1, workers=1)

sky = lsdb.open_catalog("sky", columns=["object_id", "ra", "dec", "FLUX_G", "FLUX_R", "Z"])
sky.compute(progress_bar=False).head()

# %%
# The vectors
# -----------
#
# Images are most of the work, so this first look leaves them out: 1,000 galaxies from their numbers
# alone take seconds. Called again it finds the pixels done and does nothing.

numbers_only = chosen_survey("legacysurvey", id_column=None, image_column=None, without="image")
record = skyvec.run("sky", name="photometry", survey=numbers_only, workers=0)
print(f"{record.rows} rows, {record.failed_rows} without a vector, exit code {record.exit_code}")

# %%
# The new columns
# ---------------
#
# One vector of 128 numbers, and why it may be absent or doubtful: a status, reasons as bits, the
# modalities and the number of tokens that it was made of. A catalog knows the extensions that it had
# when it was opened, so it is opened again.

sky = lsdb.open_catalog("sky", columns=["object_id", "ra", "dec", "FLUX_G", "FLUX_R", "Z"])
galaxies = sky.load_extension("photometry").compute(progress_bar=False)
added = [name for name in galaxies.columns if name.startswith("photometry")]
galaxies[["object_id", *added]].head()

# %%
# Every input row is there, once:

assert sorted(galaxies["object_id"]) == sorted(sky.compute(progress_bar=False)["object_id"])
galaxies["photometry_status"].value_counts()

# %%
# What lies in them
# -----------------
#
# The two directions in which the vectors vary most, coloured by what the model was never given
# here: redshift. Whether they hold more than fluxes do is a question for a probe, on the next page.

vectors = np.stack([np.asarray(v, np.float32) for v in galaxies["photometry"]])
centred = vectors - vectors.mean(0)
_, strength, directions = np.linalg.svd(centred, full_matrices=False)
x, y = (centred @ directions[:2].T).T
share = strength**2 / (strength**2).sum()

figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.8), layout="constrained")
left.scatter(galaxies["ra"], galaxies["dec"], s=6, c="#0072b2")
left.set(xlabel="right ascension (deg)", ylabel="declination (deg)", title="Where they are")
left.invert_xaxis()
shown = right.scatter(x, y, s=6, c=galaxies["Z"], cmap="viridis", vmax=1)
right.set(
    xlabel=f"first direction ({share[0]:.0%} of the variance)",
    ylabel=f"second direction ({share[1]:.0%})",
    title="What the vectors see",
)
figure.colorbar(shown, label="redshift")
plt.show()

# %%
# Images as well
# --------------
#
# The same, with the images, for one HEALPix pixel of the sky (98 galaxies). Leave ``selection``
# out, and all are done: a minute or two for 1,000 on two cores.

record = skyvec.run("sky", name="with_images", selection=Selection.parse(limit=50), workers=0)
print(f"{record.rows} rows, {record.failed_rows} without a vector")

# %%
# In a terminal the two runs are ``skyvec embed sky --without image --name photometry`` and ``skyvec
# embed sky --name with_images --limit 50``.
