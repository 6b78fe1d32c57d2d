#!/bin/bash
# Trains on several nodes of a SLURM cluster, one task for each GPU:
#
#     WORKDIR=/shared/runs/pets sbatch scripts/slurm.sh --cfg mnv2.py --cfg.data.source=/shared/pets
#
# The run directory and the images have to be where all nodes see them. JAX reads from SLURM's
# variables which task is which.
#SBATCH --job-name=jaxtl
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=4
#SBATCH --gpus-per-node=4
#SBATCH --cpus-per-task=8
#SBATCH --time=24:00:00
#SBATCH --signal=TERM@120
#SBATCH --requeue
#SBATCH --open-mode=append
set -u

srun --cpus-per-task="$SLURM_CPUS_PER_TASK" --kill-on-bad-exit=1 python -m jaxtl.train --workdir "$WORKDIR" "$@"
code=$?

# To be continued: stopped before the end of its time (143); and, five times, where a process or node
# was lost (75, or 134 from JAX) or killed, as for its memory (137).
case $code in
  143) scontrol requeue "$SLURM_JOB_ID" ;;
  75 | 134 | 137) [ "${SLURM_RESTART_COUNT:-0}" -ge 5 ] || scontrol requeue "$SLURM_JOB_ID" ;;
esac
exit $code
