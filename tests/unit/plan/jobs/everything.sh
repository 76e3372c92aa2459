#!/bin/bash
# Written by `ptcli train --launcher slurm`: group relative policy optimisation of builtin:tiny.
# The recipe beside this file is what was submitted; the job goes on from the run's last checkpoint where there is one.
#SBATCH --job-name=run
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --cpus-per-task=48
#SBATCH --gpus-per-node=6
#SBATCH --account=lab-7
#SBATCH --partition=gpu
#SBATCH --qos=high
#SBATCH --constraint='a100&nvlink'
#SBATCH --time=1-12:00:00
#SBATCH --signal=B:USR1@600
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output='/scratch/it'"'"'s 100%% mine/logs/slurm-%j.out'
#SBATCH --export=ALL
#SBATCH --mem=0
#SBATCH --exclusive
#SBATCH --mail-type=END,FAIL
#SBATCH --comment='it'"'"'s mine'

command -v module >/dev/null || . /etc/profile
module load cuda/13.0 gcc || exit 1

set -euo pipefail

run='/scratch/it'"'"'s 100% mine'

newest_checkpoint() {
  find "$run" -maxdepth 1 -name 'checkpoint-[0-9]*' | sed 's/.*-//' | sort -n | tail -n 1
}

# Slurm tells this shell alone (--signal=B:), and it tells ptcli on this node, which has the trainers save. Sent to the
# job's steps, the same signal would reach every process of theirs and end the trainers before they could.
told=
tell() {
  told+="$1 "
  kill -s "$1" "$(cat "$run/slurm/pid" 2>/dev/null)" 2>/dev/null || true
}
trap 'tell USR1' USR1
trap 'tell TERM' TERM

rm -f "$run/slurm/pid"
began_with=$(newest_checkpoint)
resume=(--resume)

export MASTER_ADDR=${PTCLI_MASTER_ADDR:-$(scontrol show hostnames "$SLURM_JOB_NODELIST" | sed -n 1p)}
export MASTER_PORT=$((20000 + SLURM_JOB_ID % 12000))

srun --kill-on-bad-exit=1 --label --mpi=none --cpus-per-task="$SLURM_CPUS_PER_TASK" --container-image=registry.example/train:1 --container-mounts='/scratch/it'"'"'s 100% mine:/scratch/it'"'"'s 100% mine,/data,/scratch/me:/mine:ro' bash -c '
  [ "$SLURM_NODEID" != 0 ] || echo "$$" > "$0/slurm/pid"
  exec "$@" --node-rank "$SLURM_NODEID" --master "$MASTER_ADDR:$MASTER_PORT"
' "$run" ptcli train "$run/slurm/recipe.yaml" "${resume[@]}" &
step=$! seen= code=0
wait "$step" || code=$?
while [ "$seen" != "$told" ]; do  # a signal ends a wait, and the step goes on
  seen=$told code=0
  wait "$step" || code=$?
done

ended_with=$(newest_checkpoint)
case "$code $told" in
"0 "*) exit 0 ;;
*USR1*) ;;
*) exit "$code" ;;
esac
if ! grep -q '"state": "stopped"' "$run/status.json"; then
  exit "$code"
elif [ "$began_with" = "$ended_with" ]; then
  echo "ptcli: no checkpoint was saved before the time was up; raise launch.slurm.time or signal_seconds"
  exit "$code"
fi
echo "ptcli: the time was up at checkpoint $ended_with; the job is queued again and goes on from there"
trap '' TERM
scontrol requeue "$SLURM_JOB_ID" || echo 'ptcli: Slurm refused to; to go on from there: ptcli train '"'"'/scratch/it'"'"'"'"'"'"'"'"'s 100% mine/slurm/recipe.yaml'"'"' --launcher slurm --resume'
exit "$code"
