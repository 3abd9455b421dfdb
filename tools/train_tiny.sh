#!/usr/bin/env bash
# Train skyvec-tiny from its recipe and score it: mock survey, codec, quantizers, tokens, transformer,
# folder, scorecard. Every step resumes: run it again after an interruption. It takes hours on two
# cores.
set -euo pipefail
run=${1:-.train-tiny}
bin=${VENV:-.venv}/bin
seed=1
mkdir -p "$run"
survey() {  # folder, rows, seed, more options
  [ -d "$run/$1" ] || "$bin/skyvec" mock-survey --rows "$2" --seed "$3" --out "$run/$1" "${@:4}"
}
recipes=$("$bin/python" -c 'import skyvec_training as s; print(s.__path__[0])')/recipes
part() { "$bin/python" -m skyvec_training "$@" --seed $seed; }

survey survey 30000 101
part image-codec "$run/survey" --out "$run/codec"
part scalars "$run/survey" --out "$run/scalars"
# The stage tokenizes with any folder that holds the codecs; this one's transformer is untrained.
part export "$run/codec" --scalars "$run/scalars" --out "$run/codecs-only"
"$bin/skyvec" tokenize "$run/survey" --model "$run/codecs-only" --name train_tokens
part transformer "$run/survey/train_tokens" --out "$run/start" \
  --recipe "$recipes/skyvec_tiny_start.toml"
# With 30,000 objects it soon knows them by heart; fluxes and redshifts alone cost a thousandth of an image.
survey catalogs 240000 102 --without-images
"$bin/skyvec" tokenize "$run/catalogs" --without image --model "$run/codecs-only" --name train_tokens
"$bin/python" -m skyvec_training compile-tokens images="$run/survey/train_tokens" \
  catalogs="$run/catalogs/train_tokens" --out "$run/shards"
part transformer "$run/shards" --out "$run/transformer" --from "$run/start" --with-optimizer
part export "$run/codec" --scalars "$run/scalars" --transformer "$run/transformer" \
  --without-constants --out "$run/skyvec-tiny" \
  --data "30,000 mock galaxies (skyvec mock-survey --rows 30000 --seed 101), and 240,000 without images (--rows 240000 --seed 102 --without-images)"

# Scored on another sky, of which it has seen nothing.
survey unseen 6000 606
"$bin/skyvec" tokenize "$run/unseen" --model "$run/skyvec-tiny" --name tokens
"$bin/skyvec" evaluate "$run/unseen" --model "$run/skyvec-tiny" --tokens tokens --out "$run/scorecard"
echo "skyvec-tiny is in $run/skyvec-tiny; to ship it: cp -r $run/skyvec-tiny plugin/skyvec/weights/"
