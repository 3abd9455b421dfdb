"""skyvec beside the official AION-1 package: same weights, same inputs, in one process.

`make bench-aion` runs this in the environment of the official package (skyvec_core needs torch
alone) and prints the tables of docs/speed.md. Every figure is CPU time on one thread; the
contestants run in turn, and the medians of several rounds are compared. Weights are random, since
the published ones are not at hand; accuracy under reduced precision is also given for skyvec-tiny,
whose weights are trained.
"""

from __future__ import annotations

import argparse
import platform
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from torch.nn import functional

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT / "core"), str(ROOT / "integration" / "aion_parity")]

import oracle  # noqa: E402  # needs the official package
from aion.modalities import LegacySurveyImage  # noqa: E402

from skyvec_core.embedder import Model  # noqa: E402
from skyvec_core.modalities import MODALITIES  # noqa: E402
from skyvec_core.observations import Images, Spectra, Tokens  # noqa: E402

SCALARS = ("tok_flux_g", "tok_flux_r", "tok_z")
IMAGE, SPECTRUM = "tok_image", "tok_spectrum_desi"
BANDS = ("DES-G", "DES-R", "DES-I", "DES-Z")
DEPTH, WIDTH = 12, 768


def medians(contestants: dict[str, Callable[[], object]], rounds: int) -> dict[str, float]:
    """Median CPU seconds of each; one warming call each, then in turn."""
    seconds: dict[str, list[float]] = {name: [] for name in contestants}
    for turn in range(rounds + 1):
        for name, call in contestants.items():
            start = time.process_time()
            call()
            if turn:
                seconds[name].append(time.process_time() - start)
    return {name: statistics.median(times) for name, times in seconds.items()}


def report(figure: str, value: float, goal: str, note: str = "") -> None:
    """Print one line of the table."""
    print(f"| {figure} | {value:.2f} | {goal} | {note} |", flush=True)


def random_tokens(keys, count, generator):
    """Random codes (count, N) of each domain."""
    return {
        key: torch.randint(
            0, MODALITIES[key].vocabulary - 1, (count, MODALITIES[key].num_tokens),
            generator=generator,
        )
        for key in keys
    }  # fmt: skip


def given(ids, valid=None):
    """As our own token set."""
    return {
        key: Tokens(
            ids_BN=value,
            valid_BN=torch.ones_like(value, dtype=torch.bool) if valid is None
            else valid[key][:, None].expand_as(value),
        )
        for key, value in ids.items()
    }  # fmt: skip


def cosines(vectors, reference):
    """Smallest cosine over the objects."""
    return float(functional.cosine_similarity(vectors, reference).amin())


def galaxies(count, generator):
    """Round blobs with noise (count, 4, 96, 96), nanomaggies."""
    y, x = torch.meshgrid(torch.arange(96.0), torch.arange(96.0), indexing="ij")
    center = 48 + 8 * torch.randn((count, 2, 1, 1), generator=generator)
    radius = 2 + 8 * torch.rand((count, 1, 1), generator=generator)
    distance = ((x - center[:, 0]) ** 2 + (y - center[:, 1]) ** 2).sqrt()
    profile = torch.exp(-distance / radius)[:, None]
    color = torch.exp(torch.randn((count, 4, 1, 1), generator=generator))
    noise = 0.02 * torch.randn((count, 4, 96, 96), generator=generator)
    return profile * color + noise


def spectra(count, generator):
    """Continua with lines and noise on the DESI grid (count, 7781)."""
    wavelength = (3600 + 0.8 * torch.arange(7781.0)).expand(count, -1).contiguous()
    level = torch.exp(torch.randn((count, 1), generator=generator))
    tilt = torch.randn((count, 1), generator=generator) * (wavelength - 6700) / 6700
    flux = level * (1 + tilt + torch.randn(wavelength.shape, generator=generator) * 0.3)
    for _ in range(4):
        at = 3700 + 6000 * torch.rand((count, 1), generator=generator)
        flux = flux + 5 * level * torch.exp(-(((wavelength - at) / 5) ** 2))
    ivar = torch.rand(wavelength.shape, generator=generator) * 4
    bad = torch.rand(wavelength.shape, generator=generator) < 0.02
    return wavelength, flux, ivar, bad


def linear_layers(dtype: torch.dtype) -> dict[str, tuple[float, Callable[[], object]]]:
    """Work in GFLOP and call of a plain linear layer, for each of the encoder's shapes."""
    layers = {}
    for outputs, inputs in ((3 * WIDTH, WIDTH), (WIDTH, WIDTH), (2048, WIDTH), (WIDTH, 2048)):
        weight = torch.randn(outputs, inputs, dtype=dtype)
        for rows in (579, 4 * 579):
            x = torch.randn(rows, inputs, dtype=dtype)
            layers[f"{dtype} {outputs}x{inputs} {rows}"] = (
                2 * rows * outputs * inputs / 1e9,
                partial(functional.linear, x, weight),
            )
    return layers


def encode_gflop(tokens: int) -> float:
    """Floating-point work of one encode, linear layers and attention."""
    block = 4 * WIDTH * WIDTH + 3 * WIDTH * 2048
    linear = 2 * tokens * (DEPTH * block + WIDTH * WIDTH)
    return (linear + DEPTH * 4 * tokens * tokens * WIDTH) / 1e9


def bench_encode(folder: Path, rounds: int) -> None:
    """An image and three scalars, 579 tokens."""
    generator = torch.Generator().manual_seed(1)
    ids = random_tokens((IMAGE, *SCALARS), 4, generator)
    official = oracle.transformer(str(folder))
    half = oracle.AION.from_pretrained(str(folder)).eval().bfloat16()
    ours, ours_half = (Model(folder, {}, name="base", precision=p) for p in ("float32", "bfloat16"))
    tokens, count = given(ids), 579
    layers = {dtype: linear_layers(dtype) for dtype in (torch.float32, torch.bfloat16)}
    taken = medians(
        {
            "official": lambda: official.encode(ids, num_encoder_tokens=count).mean(1),
            "official bf16": lambda: half.encode(ids, num_encoder_tokens=count).mean(1),
            "fp32": lambda: ours.embed(tokens),
            "bf16": lambda: ours_half.embed(tokens),
            **{name: call for some in layers.values() for name, (_, call) in some.items()},
        },
        rounds,
    )
    peak, peak_half = (
        max(work / taken[name] for name, (work, _) in layers[dtype].items())
        for dtype in (torch.float32, torch.bfloat16)
    )
    reference = ours.embed(tokens)
    work = 4 * encode_gflop(count)
    report("encode fp32, over official fp32", taken["official"] / taken["fp32"], "1.30",
           f"{taken['fp32'] / 4 * 1e3:.0f} ms an object; official {taken['official'] / 4 * 1e3:.0f}")  # fmt: skip
    report("encode fp32, share of the linear peak", work / taken["fp32"] / peak, "0.90",
           f"peak {peak:.0f} GFLOP/s; official {work / taken['official'] / peak:.2f}")  # fmt: skip
    report("encode bf16, over official fp32", taken["official"] / taken["bf16"], "3.2",
           f"{taken['bf16'] / 4 * 1e3:.0f} ms; official bf16 {taken['official'] / taken['official bf16']:.2f}")  # fmt: skip
    report("encode bf16, share of the bf16 linear peak", work / taken["bf16"] / peak_half, "",
           f"peak {peak_half:.0f} GFLOP/s, {peak_half / peak:.2f} of fp32; at this peak the ratio "
           f"above would be {taken['official'] / (work / peak_half):.2f}")  # fmt: skip
    report("encode bf16, smallest cosine to fp32", cosines(ours_half.embed(tokens), reference),
           "0.999", "random weights")  # fmt: skip


def bench_mixed(folder: Path, rounds: int) -> None:
    """Rows with a spectrum (30%), an image (60%) and always scalars, in random order."""
    generator = torch.Generator().manual_seed(2)
    count, per_batch = 24, 8
    ids = random_tokens((*SCALARS, SPECTRUM, IMAGE), count, generator)
    some = torch.ones(count, dtype=torch.bool)
    valid = dict.fromkeys(ids, some)
    for key, share in ((SPECTRUM, 0.3), (IMAGE, 0.6)):
        # Exactly the share, in random rows.
        valid[key] = torch.zeros(count, dtype=torch.bool)
        valid[key][torch.randperm(count, generator=generator)[: round(share * count)]] = True
    tokens = given(ids, valid)
    official = oracle.transformer(str(folder))

    def official_rows():
        for rows in torch.arange(count).split(per_batch):
            part = {key: value[rows] for key, value in ids.items()}
            hidden = {key: ~valid[key][rows, None].expand_as(part[key]) for key in ids}
            # As few tokens as the fullest row of the batch needs.
            most = int(sum((~mask).sum(1) for mask in hidden.values()).amax())
            official.encode(part, input_mask=hidden, num_encoder_tokens=most)

    models = {p: Model(folder, {}, name="base", precision=p) for p in ("float32", "bfloat16")}
    taken = medians(
        {
            "official": official_rows,
            "fp32": lambda: models["float32"].embed(tokens),
            "bf16": lambda: models["bfloat16"].embed(tokens),
        },
        max(1, rounds // 2),
    )
    mean = sum(int(coded.valid_BN.sum()) for coded in tokens.values()) / count
    note = f"{count} rows, {mean:.0f} tokens on average; official in batches of {per_batch}"
    report("mixed catalog fp32, over official fp32", taken["official"] / taken["fp32"], "2.5", note)
    report("mixed catalog bf16, over official fp32", taken["official"] / taken["bf16"], "6", "")


def bench_images(folder: Path, rounds: int) -> None:
    """Image tokens, and re-embedding from stored tokens."""
    generator = torch.Generator().manual_seed(3)
    count = 8
    flux = galaxies(count, generator)
    official_codec = oracle.codec_of(str(folder), IMAGE)
    official = oracle.transformer(str(folder))
    models = {p: Model.load(folder, precision=p) for p in ("float32", "bfloat16")}
    observed = {IMAGE: Images(
        flux_BCHW=flux, good_BCHW=torch.ones_like(flux, dtype=torch.bool), bands=BANDS,
    )}  # fmt: skip
    scalars = random_tokens(SCALARS, count, generator)

    def official_tokens():
        # A copy, since the official codec writes into its input.
        return official_codec.encode(LegacySurveyImage(flux=flux.clone(), bands=list(BANDS)))

    def official_both():
        ids = official_tokens().reshape(count, -1).long()
        return official.encode({IMAGE: ids, **scalars}, num_encoder_tokens=579).mean(1)

    with torch.inference_mode():
        found = {p: m.tokenize(observed)[IMAGE].ids_BN for p, m in models.items()}
        expected = official_tokens().reshape(count, -1).long()
        stored = given({IMAGE: found["float32"], **scalars})
        taken = medians(
            {
                "official": official_tokens,
                "fp32": lambda: models["float32"].tokenize(observed),
                "bf16": lambda: models["bfloat16"].tokenize(observed),
            },
            rounds,
        )
        taken_both = medians(
            {
                "official": official_both,
                "fp32": lambda: models["float32"].embed(stored),
                "bf16": lambda: models["bfloat16"].embed(stored),
            },
            max(1, rounds // 2),
        )
        reference = models["float32"].embed(stored)
        half = models["float32"].embed(given({IMAGE: found["bfloat16"], **scalars}))
    equal = {p: float((ids == expected).float().mean()) for p, ids in found.items()}
    report("image tokens fp32, over official fp32", taken["official"] / taken["fp32"], "1.15",
           f"{taken['fp32'] / count * 1e3:.0f} ms an image; tokens equal {equal['float32']:.4%}, "
           f"{len(expected.unique())} distinct")  # fmt: skip
    report("image tokens bf16, over official fp32", taken["official"] / taken["bf16"], "2.2",
           f"tokens equal {equal['bfloat16']:.1%}; vector cosine {cosines(half, reference):.4f} "
           "(random weights)")  # fmt: skip
    report("re-embedding from stored tokens fp32, over official tokenize + encode",
           taken_both["official"] / taken_both["fp32"], "1.8")  # fmt: skip
    report("re-embedding from stored tokens bf16, over official tokenize + encode",
           taken_both["official"] / taken_both["bf16"], "4")  # fmt: skip


def bench_spectra(folder: Path, rounds: int) -> None:
    """Spectrum tokens."""
    generator = torch.Generator().manual_seed(4)
    count = 16
    wavelength, flux, ivar, bad = spectra(count, generator)
    official_codec = oracle.codec_of(str(folder), SPECTRUM)
    models = {p: Model.load(folder, precision=p) for p in ("float32", "bfloat16")}
    observed = {SPECTRUM: Spectra(
        flux_BL=flux, ivar_BL=ivar, good_BL=~bad, wavelength_BL=wavelength,
    )}  # fmt: skip
    modality = oracle.CLASSES[SPECTRUM]

    def official_tokens():
        return official_codec.encode(
            modality(flux=flux, ivar=ivar, mask=bad, wavelength=wavelength)
        )

    with torch.inference_mode():
        found = {p: m.tokenize(observed)[SPECTRUM].ids_BN for p, m in models.items()}
        expected = official_tokens().reshape(count, -1).long()
        taken = medians(
            {
                "official": official_tokens,
                "fp32": lambda: models["float32"].tokenize(observed),
                "bf16": lambda: models["bfloat16"].tokenize(observed),
            },
            rounds,
        )
    equal = {p: float((ids == expected).float().mean()) for p, ids in found.items()}
    report("spectrum tokens fp32, over official fp32", taken["official"] / taken["fp32"], "1.6",
           f"{taken['fp32'] / count * 1e3:.0f} ms a spectrum; tokens equal {equal['float32']:.4%}, "
           f"{len(expected.unique())} distinct")  # fmt: skip
    report("spectrum tokens bf16, over official fp32", taken["official"] / taken["bf16"], "2.5",
           f"tokens equal {equal['bfloat16']:.1%}")  # fmt: skip


def bench_trained() -> None:
    """What bfloat16 costs a trained model: skyvec-tiny on made-up galaxies."""
    generator = torch.Generator().manual_seed(5)
    flux = galaxies(64, generator)
    observed = {IMAGE: Images(
        flux_BCHW=flux, good_BCHW=torch.ones_like(flux, dtype=torch.bool), bands=BANDS,
    )}  # fmt: skip
    folder = ROOT / "plugin" / "skyvec" / "weights" / "skyvec-tiny"
    full, half = (Model.load(folder, precision=p) for p in ("float32", "bfloat16"))
    tokens, tokens_half = full.tokenize(observed), half.tokenize(observed)
    reference = full.embed(tokens)
    center = reference.mean(0)

    def both(vectors):
        plain, centered = cosines(vectors, reference), cosines(vectors - center, reference - center)
        return f"{plain:.5f}, with the mean taken off {centered:.5f}"

    same = float((tokens[IMAGE].ids_BN == tokens_half[IMAGE].ids_BN).float().mean())
    print(f"\nskyvec-tiny (trained) in bf16, smallest cosine of 64 vectors to fp32: encoder alone "
          f"{both(half.embed(tokens))}; tokens too ({same:.1%} equal) "
          f"{both(half.embed(tokens_half))}")  # fmt: skip


def peak_memory(who: str, folder: Path) -> None:
    """Load, tokenize and encode 32 objects with an image and a spectrum, print the peak in MB."""
    torch.set_num_threads(2)
    generator, count = torch.Generator().manual_seed(6), 32
    flux, (wavelength, level, ivar, bad) = galaxies(count, generator), spectra(count, generator)
    with torch.inference_mode():
        if who == "official":
            codecs = {key: oracle.codec_of(str(folder), key) for key in (IMAGE, SPECTRUM)}
            spectrum = oracle.CLASSES[SPECTRUM](
                flux=level, ivar=ivar, mask=bad, wavelength=wavelength
            )
            ids = {
                IMAGE: codecs[IMAGE].encode(LegacySurveyImage(flux=flux, bands=list(BANDS))),
                SPECTRUM: codecs[SPECTRUM].encode(spectrum),
            }
            ids = {key: value.reshape(count, -1).long() for key, value in ids.items()}
            oracle.transformer(str(folder)).encode(ids, num_encoder_tokens=849)
        elif who == "skyvec":
            model = Model.load(folder)
            model.embed(model.tokenize({
                IMAGE: Images(
                    flux_BCHW=flux, good_BCHW=torch.ones_like(flux, dtype=torch.bool), bands=BANDS
                ),
                SPECTRUM: Spectra(
                    flux_BL=level, ivar_BL=ivar, good_BL=~bad, wavelength_BL=wavelength
                ),
            }))  # fmt: skip
    # Not ru_maxrss, which a process inherits from the one that started it.
    status = Path("/proc/self/status").read_text()
    print(int(re.search(r"VmHWM:\s+(\d+) kB", status)[1]) / 1024)


def bench_memory(folder: Path) -> None:
    """Peak resident memory, each in a process of its own."""
    peak = {}
    for who in ("nothing", "official", "skyvec"):
        command = [sys.executable, __file__, "--peak-memory", who, "--folder", str(folder)]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        peak[who] = float(done.stdout.splitlines()[-1])
    report("peak memory, 32 objects with image and spectrum, over official", peak["skyvec"] / peak["official"],
           "0.6 at most", ", ".join(f"{who} {mb:,.0f} MB" for who, mb in peak.items()))  # fmt: skip


def main() -> None:
    """Measure everything, or what ``--only`` names."""
    parts = ("encode", "mixed", "images", "spectra", "trained", "memory")
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--only", nargs="*", choices=parts, default=parts)
    parser.add_argument("--folder", type=Path, help="keep the random base model here for next time")
    parser.add_argument("--peak-memory", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.peak_memory:
        peak_memory(arguments.peak_memory, arguments.folder)
        return
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as scratch:
        folder = arguments.folder or Path(scratch) / "base"
        if not (folder / "config.json").is_file():
            oracle.make_transformer({}, folder=str(folder), dim=WIDTH, heads=12,
                                    encoder_depth=DEPTH, decoder_depth=DEPTH, seed=0)  # fmt: skip
            for key in (IMAGE, SPECTRUM):
                oracle.make_codec({}, folder=str(folder), name=MODALITIES[key].codec,
                                  size="published", seed=0)  # fmt: skip
        print(
            f"torch {torch.__version__}, {platform.machine()}, one thread, {arguments.rounds} rounds\n"
        )
        print("| figure | measured | at least | |\n|---|---|---|---|")
        with torch.inference_mode():
            for part in arguments.only:
                if part == "trained":
                    bench_trained()
                elif part == "memory":
                    bench_memory(folder)
                else:
                    globals()[f"bench_{part}"](folder, arguments.rounds)


if __name__ == "__main__":
    main()
