"""Load a run's newest checkpoint on the ranks of this world and save it again elsewhere."""

import sys
from pathlib import Path

from skyvec_training.loop import checkpoint, restoring
from skyvec_training.loop.checkpoint import Retention
from skyvec_training.loop.optimizer import build_optimizer, named_state
from skyvec_training.masked.transformer import build_task
from skyvec_training.parallel.mesh import join
from skyvec_training.parallel.sharding import named_parameters
from skyvec_training.recipe.recipe import load_recipe


def main(source: Path, target: Path, recipe: Path) -> None:
    run = load_recipe(recipe).transformer
    with join(run.parallel) as world:
        task = build_task(None, run, seed=9, world=world)
        parameters = named_parameters(task.module)
        tensors = named_state(parameters, build_optimizer(parameters, run.optimizer))
        found = restoring.newest_sound(source, world=world)
        restoring.load(found, tensors, world=world)
        checkpoint.save(target, tensors, found.facts, retention=Retention(newest=1), world=world)


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
