#!/bin/bash
# Train on several nodes under SLURM: restarted when a process dies, saved and requeued before the
# time is up. Every value that you may want to change stands above the line.
#SBATCH --job-name=skyvec-train
#SBATCH --nodes=8
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=64
#SBATCH --time=24:00:00
#SBATCH --signal=B:USR1@300
#SBATCH --requeue
#SBATCH --open-mode=append
set -u
: "${TOKENS:?folder of compiled tokens}" "${RUN:?folder of this run, on a disk that all nodes see}"
: "${RECIPE:?recipe (TOML)}"
RESTARTS=${RESTARTS:-3}
PYTHON=${PYTHON:-python}
# ------------------------------------------------------------------------------------------------
mkdir -p "$RUN"
rm -f "$RUN/STOP"
# Five minutes before the end SLURM tells this script alone (B:). A file has no time limit and needs
# no signal to find its way through srun and torchrun; rank 0 sees it at the next logged step.
trap 'touch "$RUN/STOP"' USR1

export OMP_NUM_THREADS=1
head=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
srun "$PYTHON" -m skyvec_training.parallel.launch \
  --nnodes "$SLURM_NNODES" --nproc-per-node "${SLURM_GPUS_ON_NODE:-8}" --max-restarts "$RESTARTS" \
  --rdzv-backend c10d --rdzv-endpoint "$head:29400" \
  --rdzv-id "$SLURM_JOB_ID-${SLURM_RESTART_COUNT:-0}" \
  -- transformer "$TOKENS" --out "$RUN" --recipe "$RECIPE" &
running=$!

# A trapped signal ends `wait` early, so wait until the launcher is gone.
code=0
while kill -0 "$running" 2>/dev/null; do
  wait "$running"
  code=$?
done

# 75: asked to stop, and saved. Everything else is for people: 0 done, 30 data, 40 recipe or loss,
# 50 processes died more often than RESTARTS.
if [ "$code" -eq 75 ]; then
  scontrol requeue "$SLURM_JOB_ID"
  exit 0
fi
exit "$code"
