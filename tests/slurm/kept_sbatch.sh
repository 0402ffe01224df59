#!/bin/bash

# Parameters
#SBATCH --account=vision
#SBATCH --array=0-2%3
#SBATCH --comment=SUBMISSION
#SBATCH --constraint=h200
#SBATCH --cpus-per-task=12
#SBATCH --error=LOGS/%A_%a_0_log.err
#SBATCH --gpus-per-node=8
#SBATCH --job-name=sizes
#SBATCH --mem=64G
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=8
#SBATCH --open-mode=append
#SBATCH --output=LOGS/%A_%a_0_log.out
#SBATCH --partition=gpu
#SBATCH --qos=long
#SBATCH --requeue
#SBATCH --reservation=course
#SBATCH --signal=USR2@90
#SBATCH --time=240
#SBATCH --wckey=submitit

# setup
export PYTHONPATH=LOGS/code${PYTHONPATH:+:$PYTHONPATH}
module load cuda

# command
export SUBMITIT_EXECUTOR=slurm
srun --unbuffered --output LOGS/%A_%a_%t_log.out --error LOGS/%A_%a_%t_log.err --kill-on-bad-exit=1 --export=ALL --cpus-per-task=12 --cpu-bind=cores PYTHON -u -m submitit.core._submit LOGS
