#!/usr/bin/env bash
# Train skyvec-tiny from its recipe and score it: mock survey, codec, quantizers, tokens, transformer,
# folder, scorecard. Every step resumes: run it again after an interruption. It takes hours on two
# cores.
set -euo pipefail
run=${1:-.train-tiny}
bin=${VENV:-.venv}/bin
seed=1
mkdir -p "$run"
survey() {  # folder, rows, seed
  [ -d "$run/$1" ] || "$bin/skyvec" mock-survey --rows "$2" --seed "$3" --out "$run/$1"
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
part transformer "$run/survey/train_tokens" --out "$run/transformer" \
  --from "$run/start" --with-optimizer
part export "$run/codec" --scalars "$run/scalars" --transformer "$run/transformer" \
  --without-constants --out "$run/skyvec-tiny" \
  --data "30,000 mock galaxies, skyvec mock-survey --rows 30000 --seed 101"

# Scored on another sky, of which it has seen nothing.
survey unseen 6000 606
"$bin/skyvec" tokenize "$run/unseen" --model "$run/skyvec-tiny" --name tokens
"$bin/skyvec" evaluate "$run/unseen" --model "$run/skyvec-tiny" --tokens tokens --out "$run/scorecard"
echo "skyvec-tiny is in $run/skyvec-tiny; to ship it: cp -r $run/skyvec-tiny plugin/skyvec/weights/"
