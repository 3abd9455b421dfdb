"""Training of the spectrum codec: noise-weighted flux, bad samples, and codes that are all in use.

The recipe follows AION-1 (paper, appendix): negative log-likelihood of the flux under its noise,
cross-entropy of the mask, commitment to codes. The entropy terms are those of lookup-free
quantization (Yu et al. 2023, arXiv 2310.05737).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from skyvec_core.codecs.spectrum import MIN_LEVEL, SpectrumCodec, SpectrumCodecConfig
from skyvec_core.observations import Spectra
from skyvec_training.codecs.codebook import entropy
from skyvec_training.codecs.mixture import Learnt, Mixture
from skyvec_training.data.draws import Stream, uniforms
from skyvec_training.data.spectra import SpectrumStore
from skyvec_training.recipe.codecs import SpectrumCodecRun

# Shape letters: B object, L sample of a spectrum, G pixel of the codec's grid, C channel, N token,
# D latent, T token of all objects, V code.

HEADROOM = 32
"""Codes of the level table above the brightest spectrum it was fitted to."""
ENTROPY_TOKENS = 8192
"""Tokens of a batch, at most, from which the use of the codebook is estimated."""
_CHUNK = 256
_LEAST_SHARE = 1e-12


@dataclass(frozen=True, kw_only=True, slots=True)
class GridSpectra:
    """Spectra as the network takes them, and what it is to give back."""

    inputs_BGC: Tensor
    """Compressed flux and inverse error, (B, G, 2), as the published codec feeds them."""
    flux_BG: Tensor
    """Flux over level, less 1: what the decoder gives."""
    sigma_BG: Tensor
    """Its noise; infinite where a pixel is not to count."""
    bad_BG: Tensor
    """True where a sample next to the pixel is bad."""
    covered_BG: Tensor
    """True between the first and the last sample of the row."""


def build_codec(run: SpectrumCodecRun, *, seed: int) -> SpectrumCodec:
    """A codec with fresh weights, as ConvNeXt V2 draws them (normal, 0.02)."""
    sizes = asdict(run.model)
    config = SpectrumCodecConfig(**sizes, latent_channels=run.model.encoder_dims[-1])
    codec = SpectrumCodec(config)
    generator = torch.Generator().manual_seed(seed)
    for module in codec.modules():
        if isinstance(module, torch.nn.Conv1d | torch.nn.ConvTranspose1d | torch.nn.Linear):
            torch.nn.init.trunc_normal_(module.weight, std=0.02, generator=generator)
            if module.bias is not None:
                torch.nn.init.zeros_(module.bias)
    # Rows of unit length give latents of unit spread, as far apart as the codes.
    torch.nn.init.orthogonal_(codec.quant_conv.weight, generator=generator)
    return codec


def log_levels(store: SpectrumStore, rows: NDArray[np.int64]) -> NDArray[np.float64]:
    """Level log10(mean flux + 1) of some spectra, as the codec tabulates it."""
    found = []
    for start in range(0, len(rows), _CHUNK):
        spectra = store.read(rows[start : start + _CHUNK])
        flux_BL = torch.where(spectra.good_BL, spectra.flux_BL, 0.0).double()
        mean_B = (flux_BL.sum(1) / (spectra.good_BL.sum(1) + 1)).clamp(min=MIN_LEVEL)
        found.append((mean_B + 1).log10().numpy())
    return np.concatenate(found)


def fit_levels(codec: SpectrumCodec, levels: NDArray[np.float64]) -> None:
    """Make the level table the quantiles of some levels, with room above the highest.

    The last `HEADROOM` codes go on evenly to the end of the codec's range, so that a spectrum
    brighter than all of these still has a level near its own.
    """
    table = codec.normalization_quantizer.values
    top = max(codec.config.normalization_range[1], float(levels.max()))
    quantiles = np.quantile(levels, np.linspace(0, 1, len(table) - HEADROOM))
    above = np.linspace(quantiles[-1], top, HEADROOM + 1)[1:]
    table.copy_(torch.from_numpy(np.concatenate([quantiles, above])))


def on_grid(codec: SpectrumCodec, spectra: Spectra) -> GridSpectra:
    """Spectra of a store on the codec's grid, interpolated as `SpectrumCodec.encode` does."""
    config, grid_G = codec.config, codec.latent_grid.wavelength_G.numpy().astype(np.float64)
    limit = torch.inf if config.clip_flux is None else config.clip_flux
    flux_BL = spectra.flux_BL.clamp(-limit, limit)
    clipped_BL = spectra.ivar_BL.clamp(0, config.clip_ivar)
    count_B = (spectra.wavelength_BL > 0).sum(1)
    level_B1 = codec.levels(codec.level_codes(flux_BL, spectra.good_BL, count_B))
    parts = torch.stack(
        [
            flux_BL / level_B1 - 1,
            clipped_BL.sqrt() / level_B1,  # as AION-1 has it; the error of the first is times level
            spectra.good_BL.float(),
            spectra.ivar_BL.sqrt() * level_B1,
        ],
        dim=1,
    ).numpy()
    values_BCG = np.zeros((*parts.shape[:2], len(grid_G)), np.float32)
    covered_BG = np.zeros((len(parts), len(grid_G)), bool)
    wavelength_BL = spectra.wavelength_BL.double().numpy()
    for row, count in enumerate(count_B.tolist()):
        x_L = wavelength_BL[row, :count]
        covered_BG[row] = (grid_G >= x_L[0]) & (grid_G <= x_L[-1])
        for channel in range(parts.shape[1]):
            values_BCG[row, channel] = np.interp(grid_G, x_L, parts[row, channel, :count])
    values_BCG *= covered_BG[:, None]
    flux_BG, input_BG, good_BG, inverse_BG = torch.from_numpy(values_BCG).unbind(1)
    covered = torch.from_numpy(covered_BG)
    bad_BG = covered & (good_BG < 1)
    counts_BG = covered & ~bad_BG & (inverse_BG > 0)
    return GridSpectra(
        inputs_BGC=(torch.stack([flux_BG, input_BG], dim=-1) * config.input_scaling).asinh(),
        flux_BG=flux_BG,
        sigma_BG=torch.where(counts_BG, 1 / inverse_BG, torch.inf),
        bad_BG=bad_BG,
        covered_BG=covered,
    )


def cropped(spectra: GridSpectra, draws_B: NDArray[np.float64], *, cell: int, pixels: int
            ) -> GridSpectra:  # fmt: skip
    """A stretch of ``pixels`` grid pixels of each spectrum, which begins with a token.

    Parameters
    ----------
    draws_B
        Uniform numbers that say where.
    cell
        Grid pixels of a token.
    """
    places = (spectra.flux_BG.shape[1] - pixels) // cell + 1
    starts = [int(draw * places) * cell for draw in draws_B]
    return GridSpectra(
        **{
            field.name: torch.stack(
                [
                    row[start : start + pixels]
                    for row, start in zip(getattr(spectra, field.name), starts, strict=True)
                ]
            )
            for field in fields(spectra)
        }
    )


def spectrum_loss(
    codec: SpectrumCodec, spectra: GridSpectra, run: SpectrumCodecRun
) -> tuple[Tensor, dict[str, Tensor]]:
    """Loss of a batch and its parts, detached: ``flux``, ``mask``, ``commitment``, ``certainty`` and ``use``.

    ``flux`` is the mean Huber error over good pixels, in units of noise and floor together: the
    negative log-likelihood but for its constant, and linear for outliers. ``certainty`` is the mean
    entropy of a token's code, ``use`` how far the entropy of all codes falls short of its maximum,
    both in nats. Tokens that see no good pixel have no say in the codebook.
    """
    with torch.autocast("cpu", torch.bfloat16, enabled=run.precision == "bfloat16"):
        latent_BND = codec.latents(spectra.inputs_BGC).float()
        out_BGC = codec.reconstruct(codec.quantizer(latent_BND)).float()
    good_BG = spectra.sigma_BG.isfinite()
    sigma_BG = torch.hypot(spectra.sigma_BG, torch.tensor(run.error_floor))
    error_BG = torch.where(good_BG, (out_BGC[..., 0] - spectra.flux_BG) / sigma_BG, 0.0)
    huber = functional.huber_loss(
        error_BG, torch.zeros_like(error_BG), delta=run.huber_delta, reduction="sum"
    )
    crossed_BG = functional.binary_cross_entropy_with_logits(
        out_BGC[..., 1], spectra.bad_BG.float(), reduction="none"
    )
    cells = (*latent_BND.shape[:2], codec.config.cell)
    latent_TD = latent_BND[good_BG.view(cells).any(-1)]
    certainty, use = code_entropies(codec, latent_TD)
    parts = {
        "flux": huber / good_BG.sum().clamp(min=1),
        "mask": (crossed_BG * spectra.covered_BG).sum() / spectra.covered_BG.sum().clamp(min=1),
        "commitment": functional.mse_loss(latent_TD, torch.where(latent_TD > 0, 1.0, -1.0)),
        "certainty": certainty,
        "use": use,
    }
    weights = {
        "flux": 1.0,
        "mask": run.mask_weight,
        "commitment": run.commitment_weight,
        "certainty": run.entropy_weight,
        "use": run.entropy_weight,
    }
    total = torch.stack([weights[name] * part for name, part in parts.items()]).sum()
    return total, {name: part.detach() for name, part in parts.items()}


def code_entropies(codec: SpectrumCodec, latent_TD: Tensor) -> tuple[Tensor, Tensor]:
    """Mean entropy of a token's code, and what the entropy of all codes lacks to its maximum.

    A code's probability falls with the exponential of its squared distance from the latent, so its
    bits are independent: bit d is set with probability sigmoid(4 z_d).
    """
    step = -(-len(latent_TD) // ENTROPY_TOKENS)
    latent_TD = latent_TD[::step]
    logit_TD = 4 * latent_TD
    # In logits, since the slope of p log p at a probability that has rounded to 0 is infinite.
    own_TD = functional.softplus(logit_TD) - logit_TD * logit_TD.sigmoid()
    codes_V = torch.arange(codec.quantizer.num_codes)
    share_V = (2 * latent_TD @ codec.quantizer.latents(codes_V).T).softmax(-1).mean(0)
    use = np.log(len(codes_V)) - entropy(share_V.clamp(min=_LEAST_SHARE)).float()
    return own_TD.sum(-1).mean(), use


class SpectrumTask:
    """The spectrum codec on the spectra of some surveys, a batch of one of them in each step."""

    def __init__(
        self,
        codec: SpectrumCodec,
        sources: Sequence[Learnt[SpectrumStore]],
        run: SpectrumCodecRun,
        *,
        seed: int,
    ) -> None:
        self.module = codec
        self.run, self.seed = run, seed
        self.mixture = Mixture(sources)
        if run.levels == "quantiles":
            levels = [log_levels(s.store, np.arange(s.train_rows)) for s in self.mixture.sources]
            fit_levels(codec, np.concatenate(levels))

    def loss(self, step: int) -> tuple[Tensor, dict[str, float]]:
        """Loss on one batch, and its parts."""
        learnt, rows = self.mixture.rows(step, batch=self.run.batch, seed=self.seed)
        spectra = on_grid(self.module, learnt.store.read(rows))
        run = self.run
        if step < run.crop_share * run.optimizer.steps:
            draws = uniforms(
                seed=self.seed, stream=Stream.AUGMENTATION, step=step, slots=range(len(rows)),
                width=4,
            )  # fmt: skip
            cell = self.module.config.cell
            spectra = cropped(spectra, draws[:, 0], cell=cell, pixels=run.crop_tokens * cell)
        loss, parts = spectrum_loss(self.module, spectra, run)
        return loss, {name: float(part) for name, part in parts.items()}

    def evaluate(self) -> dict[str, float]:
        """Loss on held-out spectra, in all and of each source."""
        return self.mixture.mean([self._held_out_loss(learnt) for learnt in self.mixture.sources])

    def _held_out_loss(self, learnt: Learnt[SpectrumStore]) -> float:
        held_out = learnt.held_out(self.run.evaluated)
        losses = []
        for start in range(0, len(held_out), self.run.batch):
            rows = held_out[start : start + self.run.batch]
            spectra = on_grid(self.module, learnt.store.read(rows))
            losses.append(float(spectrum_loss(self.module, spectra, self.run)[0]))
        return float(np.mean(losses))
