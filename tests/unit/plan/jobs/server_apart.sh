#!/bin/bash
# Written by `ptcli train --launcher slurm`: group relative policy optimisation of builtin:tiny.
# The recipe beside this file is what was submitted; the job goes on from the run's last checkpoint where there is one.
#SBATCH --job-name=run
#SBATCH --nodes=3
#SBATCH --ntasks-per-node=1
#SBATCH --cpus-per-task=16
#SBATCH --gpus-per-node=4
#SBATCH --signal=B:USR1@300
#SBATCH --no-requeue
#SBATCH --open-mode=append
#SBATCH --output=/scratch/runs/x/logs/slurm-%j.out
#SBATCH --export=ALL

set -euo pipefail

run=/scratch/runs/x

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
export ROLLOUTS_ADDR=${PTCLI_ROLLOUTS_ADDR:-$(scontrol show hostnames "$SLURM_JOB_NODELIST" | tail -n 1)}

srun --kill-on-bad-exit=1 --label --mpi=none --cpus-per-task="$SLURM_CPUS_PER_TASK" bash -c '
  [ "$SLURM_NODEID" != 0 ] || echo "$$" > "$0/slurm/pid"
  exec "$@" --node-rank "$SLURM_NODEID" --master "$MASTER_ADDR:$MASTER_PORT"
' "$run" /opt/ptcli/bin/ptcli train "$run/slurm/recipe.yaml" "rollouts.host=$ROLLOUTS_ADDR" "${resume[@]}" &
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
echo "ptcli: the time was up at checkpoint $ended_with; to go on from there:"
echo '  ptcli train /scratch/runs/x/slurm/recipe.yaml --launcher slurm --resume'
exit "$code"
