#!/usr/bin/env bash
# Train skyvec-tiny from its recipe: mock survey, codec, quantizers, tokens, transformer, folder.
# Every step resumes: run it again after an interruption. About an hour on two cores.
set -euo pipefail
run=${1:-.train-tiny}
bin=${VENV:-.venv}/bin
seed=1
mkdir -p "$run"
[ -d "$run/survey" ] || "$bin/skyvec" mock-survey --rows 14000 --seed 101 --out "$run/survey"
"$bin/python" -m skyvec_training image-codec "$run/survey" --out "$run/codec" --seed $seed
"$bin/python" -m skyvec_training scalars "$run/survey" --out "$run/scalars" --seed $seed
parts=(--scalars "$run/scalars" --seed $seed)
# The stage tokenizes with any folder that holds the codecs; this one's transformer is untrained.
"$bin/python" -m skyvec_training export "$run/codec" "${parts[@]}" --out "$run/codecs-only"
"$bin/skyvec" tokenize "$run/survey" --model "$run/codecs-only" --name train_tokens
"$bin/python" -m skyvec_training transformer "$run/survey/train_tokens" \
  --out "$run/transformer" --seed $seed
"$bin/python" -m skyvec_training export "$run/codec" "${parts[@]}" \
  --transformer "$run/transformer" --out "$run/skyvec-tiny" \
  --data "14,000 mock galaxies, skyvec mock-survey --rows 14000 --seed 101"
echo "skyvec-tiny is in $run/skyvec-tiny; to ship it: cp -r $run/skyvec-tiny plugin/skyvec/weights/"
