#!/usr/bin/env bash
# demo on a v5litepod-16: makes the slice, runs host.sh on all its hosts, and deletes it.
# Exit code 75 says that the run was pre-empted and has saved; above 127, a host or the connection was lost. In both cases
# a new slice goes on with the run, up to 3 times. Any other code is the program's own, and the end.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"
slice=(demo --project=lab --zone=us-east5-b)

git -C "$(git rev-parse --show-toplevel)" archive --format=tar.gz HEAD |
    gcloud storage cp - gs://lab-runs/launch/demo/code.tar.gz
git diff --quiet HEAD || echo "Changes that are not committed do not go with the job." >&2

remove() { gcloud compute tpus tpu-vm delete "${slice[@]}" --quiet || true; }
trap remove EXIT
status=0
for ((attempt = 0; attempt <= 3; attempt++)); do
    if ((attempt > 0)); then
        echo "exit code $status: start $((attempt + 1)) on a new slice" >&2
        remove
    fi
    gcloud compute tpus tpu-vm create "${slice[@]}" \
        --accelerator-type=v5litepod-16 --version=v2-alpha-tpuv5-lite --spot
    status=0
    gcloud compute tpus tpu-vm ssh "${slice[@]}" --worker=all --command="$(cat host.sh)" || status=$?
    if ((status != 75 && status <= 127)); then break; fi
done
exit "$status"
