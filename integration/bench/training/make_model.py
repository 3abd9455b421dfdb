"""``python make_model.py FOLDER DIM HEADS LAYERS``: random weights, as the official package saves them."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "aion_parity"))

import oracle

if __name__ == "__main__":
    folder, dim, heads, layers = sys.argv[1], *map(int, sys.argv[2:])
    oracle.make_transformer({}, folder=folder, dim=dim, heads=heads,
                            encoder_depth=layers, decoder_depth=layers, seed=0)  # fmt: skip
