#!/usr/bin/env bash
# One process per GPU, as JAX expects it under Slurm, from which it learns who the others are.
#
#   sbatch experiments/launch_slurm.sh --config=configs/coco_faster_rcnn.py --workdir=/shared/runs/coco
#
# The workdir and the data lie on a disk that all nodes share. The same command resumes a run that was stopped: Slurm's SIGTERM,
# 90 seconds before the end of the time limit, makes every process save the same step.
#SBATCH --job-name=imgrec_jax
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=8
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=8
#SBATCH --time=24:00:00
#SBATCH --signal=TERM@90
#SBATCH --requeue
set -euo pipefail
srun --kill-on-bad-exit=1 python -m imgrec_jax.main "$@"
