#!/usr/bin/env bash
# Lend an environment the torch of another, by links: lend_torch.sh FROM_PYTHON TO_PYTHON.
# It is half of what an environment takes to install, and the same in each; pip adds what it needs.
set -euo pipefail
site() { "$1" -c 'import sysconfig; print(sysconfig.get_path("platlib"))'; }
from=$(site "$1") to=$(site "$2")
# pip would mend another version through the links, in the lender.
lent=$("$1" -c 'from importlib.metadata import version; print(version("torch").partition("+")[0])')
grep -q "^torch==$lent\$" "$(dirname "$0")/../constraints.txt" || exit 0
for each in torch torchgen functorch; do
  ln -s "$from/$each" "$to/$each"
done
ln -s "$from"/torch-*.dist-info "$to/"
