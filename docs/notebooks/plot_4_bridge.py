"""
New release, new model, old probe
=================================

A model was retrained and embeds the next release. The redshift probe that everybody uses learnt on
the old vectors, and refuses the new ones, rightly. A bridge leads from new vectors to old ones; it
says what is lost on it, and lets the probe through only if that is little.
"""

# %%
# Before: the old model, its vectors, the probe
# ---------------------------------------------

from pathlib import Path

import lsdb
import matplotlib.pyplot as plt

import skyvec
from skyvec.bridging.fitting import fit_bridge
from skyvec.mock.survey import write_mock_survey
from skyvec.models import model_folder
from skyvec.surveys import chosen_survey
from skyvec_schemas.errors import ConfigurationError
from skyvec_training.__main__ import main as training

if not Path("sky").exists():
    write_mock_survey(Path("sky"), rows=1000, seed=1, workers=1)
numbers_only = chosen_survey("legacysurvey", id_column=None, image_column=None, without="image")
settings = {"survey": numbers_only, "workers": 0}
skyvec.run("sky", name="photometry", **settings)
probe = skyvec.Probe("Z", name="photoz").fit("sky", extension="photometry")
print(f"R2 on sky left out: {probe.metrics['Z']['r2']:.3f}")

# %%
# A new model
# -----------
#
# The old one, trained a little further on the tokens of this sky by low-rank changes. 40 steps
# teach it nothing worth having; they make it another model, and that is what this page is about.

recipe = """
domains = ["tok_flux_g", "tok_flux_r", "tok_flux_i", "tok_flux_z", "tok_z"]
rank = 4
alpha = 8.0
parts = ["encoder", "decoder"]
row_steps = 0
batch = 32
data = { held_out = 0.1 }
masking = { input_budget = 12, output_budget = 4 }

[optimizer]
steps = 40
learning_rate = 3e-3
warmup_steps = 5
evaluate_every = 40
checkpoint_every = 40
"""
Path("further.toml").write_text(recipe)
skyvec.run("sky", product="tokens", name="tokens", **settings)
old_model = str(model_folder("skyvec-tiny"))
words = ["lora", "sky/tokens", "--model", old_model, "--recipe", "further.toml", "--out", "further"]
assert training(words) == 0

# %%
# A new release
# -------------
#
# 300 galaxies that were not there before, embedded by the new model alone. The objects of the old
# release get new vectors as well: the bridge is built on objects that have both.

if not Path("next").exists():
    write_mock_survey(Path("next"), rows=300, seed=2, workers=1)
skyvec.run("next", name="photometry_v2", model="further/model", **settings)
record = skyvec.run("sky", name="photometry_v2", model="further/model", **settings)
print(f"{record.rows} galaxies have vectors of both models")

# %%
# The old probe refuses the new vectors:

try:
    probe.apply("next", extension="photometry_v2")
except ConfigurationError as refused:
    print(refused)

# %%
# The bridge
# ----------
#
# A linear map, fitted on part of the sky and measured on blocks that it has not seen; with the
# probe, so that its loss is known against labels.

bridge = fit_bridge("sky", new="photometry_v2", old="photometry", probes=[probe])
quality = bridge.quality
(loss,) = bridge.probes.values()
print(f"R2 of the vectors {quality.r2:.4f}; a rotation alone {quality.r2_procrustes:.4f}")
print(f"ten nearest neighbours kept: {quality.neighbours:.0%}")
print(
    f"the probe: R2 {loss.r2:.3f}, on the bridge {loss.r2_bridged:.3f}; may lose {bridge.max_loss}"
)

# %%
# The old probe on the new release
# --------------------------------
#
# Error bars come along: they are those of the probe, so they hold as far as the bridge is good.

told = probe.apply("next", extension="photometry_v2", bridge=bridge).to_pandas()
truth = lsdb.open_catalog("next", columns=["object_id", "ra", "dec", "Z"]).compute(
    progress_bar=False
)
both = told.merge(truth[["object_id", "Z"]], on="object_id")
residual = both["photoz"] - both["Z"]
r2 = 1 - (residual**2).mean() / both["Z"].var(ddof=0)
inside = ((both["photoz_low"] <= both["Z"]) & (both["Z"] <= both["photoz_high"])).mean()
print(f"R2 on {len(both)} new galaxies: {r2:.3f}; in their 90% interval: {inside:.0%}")

figure, axes = plt.subplots(figsize=(5, 4.6), layout="constrained")
axes.plot(both["Z"], both["photoz"], "o", ms=3, color="#0072b2", alpha=0.6)
top = float(both["Z"].quantile(0.995))
axes.plot([0, top], [0, top], color="#5b6672", lw=1)
axes.set(
    xlim=(0, top), ylim=(-0.1, top), xlabel="true redshift", ylabel="old probe over the bridge"
)
plt.show()
