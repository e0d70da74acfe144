#!/usr/bin/env bash
# What every host of demo does: mount the run directory, unpack the code, run the command.
set -euo pipefail
export HOME="${HOME:-/root}"  # start-up scripts have none

# The run directory is the bucket, at one path on all hosts.
if ! mountpoint -q /mnt/runs; then
    if ! command -v gcsfuse >/dev/null; then
        curl -fsSL https://packages.cloud.google.com/apt/doc/apt-key.gpg | sudo tee /usr/share/keyrings/gcsfuse.asc >/dev/null
        echo "deb [signed-by=/usr/share/keyrings/gcsfuse.asc] https://packages.cloud.google.com/apt gcsfuse-$(lsb_release -cs) main" |
            sudo tee /etc/apt/sources.list.d/gcsfuse.list >/dev/null
        sudo apt-get update -qq && sudo apt-get install -qq -y gcsfuse
    fi
    sudo mkdir -p /mnt/runs && sudo chown "$(id -u):$(id -g)" /mnt/runs
    gcsfuse --implicit-dirs lab-runs /mnt/runs
fi

# The code, as it was committed when the job was submitted.
mkdir -p "$HOME"/launch/demo
cd "$HOME"/launch/demo
gcloud storage cat gs://lab-runs/launch/demo/code.tar.gz | tar -xz

export JAX_COMPILATION_CACHE_DIR=/mnt/runs/compiled
WANDB_API_KEY=$(gcloud secrets versions access latest --secret=WANDB_API_KEY --project=lab)
export WANDB_API_KEY

status=0
scripts/host tpu experiments.forgetting mesh.data=16 'seeds=[0,1]' hydra.run.dir=/mnt/runs/demo hosts=auto || status=$?
echo "$status" | gcloud storage cp - gs://lab-runs/launch/demo/exits/"$(hostname)"
exit "$status"
