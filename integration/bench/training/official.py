"""A step of masked modelling by the official package's own forward pass and token loss.

Runs in that package's environment: ``python official.py MODEL BATCH`` loads a model folder and the
tensors of a batch, then takes one step for each line on stdin and answers with its CPU seconds and
with the loss of each domain, as JSON.
"""

import json
import os
import sys
import time
from pathlib import Path

import torch
from aion.fourm.fm import FourM
from aion.model import AION
from safetensors.torch import load_file, safe_open


def main(folder: str, batch: str) -> None:
    """Answer until stdin ends."""
    # What the package prints must not come between the answers.
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    torch.set_num_threads(1)
    model = AION.from_pretrained(folder, strict=True).train()
    settings = settings_of(batch)
    adam = torch.optim.AdamW(model.parameters(), lr=settings["learning_rate"], fused=True)
    domains = domains_of(load_file(batch))
    for _ in sys.stdin:
        seconds, losses = step(model, adam, domains, settings)
        answers.write(json.dumps({"seconds": seconds, "losses": losses}) + "\n")
        answers.flush()


def settings_of(path: str) -> dict[str, float]:
    """Budgets, learning rate and clipping, from the header of the batch."""
    with safe_open(Path(path), framework="pt") as stored:
        return json.loads(stored.metadata()["settings"])


def domains_of(tensors: dict[str, torch.Tensor]) -> dict[str, dict[str, torch.Tensor]]:
    """The dictionary that the forward pass takes: all domains that any object has."""
    found: dict[str, dict[str, torch.Tensor]] = {}
    for name, tensor in tensors.items():
        field, key = name.split(".", 1)
        found.setdefault(key, {})[field] = tensor
    return found


def step(model, adam, domains, settings):
    """CPU seconds of forward, backward, clip and update; mean cross-entropy of each domain."""
    start = time.process_time()
    adam.zero_grad(set_to_none=True)
    # The embeddings write into the dictionaries.
    fresh = {key: dict(fields) for key, fields in domains.items()}
    loss, parts = FourM.forward(
        model, fresh, num_encoder_tokens=settings["inputs"], num_decoder_tokens=settings["targets"],
        loss_type="token",
    )  # fmt: skip
    loss.sum().backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), settings["clip"])
    adam.step()
    seconds = time.process_time() - start
    return seconds, {key: part.sum().item() for key, part in parts.items()}


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2])
