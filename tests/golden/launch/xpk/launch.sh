#!/usr/bin/env bash
# demo as a workload of xpk. It is started anew after exit code 75 (pre-empted, and saved) and after signals.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"
xpk workload create \
    --workload=demo \
    --cluster=lab-cluster \
    --project=lab \
    --zone=us-east5-b \
    --tpu-type=v5litepod-16 \
    --num-slices=1 \
    --docker-image=europe-docker.pkg.dev/lab/images/adaptlab:1 \
    --storage=runs \
    '--command=python -m experiments.forgetting mesh.data=16 '"'"'seeds=[0,1]'"'"' hydra.run.dir=/mnt/runs/demo hosts=auto' \
    --env-file=environment \
    --max-restarts=3 \
    --restart-on-exit-codes=75 \
    --termination-grace-period-seconds=300
