#!/usr/bin/env bash
# Prove the wheel that is built from the sdist: install it in an empty place and embed with it.
set -euo pipefail
root=$(pwd)
venv=$(cd "${VENV:-.venv}" && pwd)
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
"$venv/bin/python" -m build --outdir "$work/dist" "$root" >"$work/build.log" 2>&1 || {
  tail -n 30 "$work/build.log"; exit 1; }
ls -l "$work/dist" | awk 'NR > 1 {print $5, $9}'
"$venv/bin/python" -m venv "$work/venv"
wheel=$(ls "$work"/dist/*.whl)
bash "$root/tools/lend_torch.sh" "$venv/bin/python" "$work/venv/bin/python"
"$work/venv/bin/pip" install --quiet --no-compile --disable-pip-version-check -c "$root/constraints.txt" "$wheel"
cd "$work"
"$work/venv/bin/python" - <<'PY'
import skyvec, skyvec_core, skyvec_schemas, skyvec_training
from pathlib import Path
for module in (skyvec, skyvec_core, skyvec_schemas, skyvec_training):
    assert "site-packages" in str(Path(module.__file__)), module.__file__
print("four packages import from the wheel; model", skyvec.load_model("skyvec-tiny").digest[:12])
PY
"$work/venv/bin/skyvec" mock-survey --rows 24 --seed 1 --out "$work/mock"
"$work/venv/bin/skyvec" embed "$work/mock" --workers 0
echo "dist-check: the wheel built from the sdist installs and embeds"
