#!/usr/bin/env bash
# demo on 2 x v5p-128 from the queue: the hosts run host.sh when they start, and this script waits for what they
# say. Exit code 75 says that the run was pre-empted and has saved; above 127, a host was lost. In both cases, and when the
# slices are taken away, they are asked for again, up to 3 times. Any other code is the program's own, and the end.
# It may be stopped and started again at any time.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"
request=(demo --project=lab --zone=us-east5-a)
exits=gs://lab-runs/launch/demo/exits
poll=${POLL_SECONDS:-60}

# NONE if there is no such request; UNKNOWN if nobody answers.
state() {
    local said
    if said=$(gcloud compute tpus queued-resources describe "${request[@]}" --format='value(state.state)' 2>&1); then
        tail -n 1 <<<"$said"
    elif [[ $said == *NOT_FOUND* ]]; then
        echo NONE
    else
        echo UNKNOWN
    fi
}
# The largest of the exit codes that hosts have told; nothing as long as there is none.
told() { { gcloud storage cat "$exits/**" 2>/dev/null || true; } | sort -n | tail -n 1; }
remove() { gcloud compute tpus queued-resources delete "${request[@]}" --force --quiet; }
ask() {
    git -C "$(git rev-parse --show-toplevel)" archive --format=tar.gz HEAD |
        gcloud storage cp - gs://lab-runs/launch/demo/code.tar.gz
    gcloud storage rm "$exits" --recursive 2>/dev/null || true
    gcloud compute tpus queued-resources create "${request[@]}" \
        --node-count=2 --node-prefix=demo \
        --accelerator-type=v5p-128 --runtime-version=v2-alpha-tpuv5 \
        --metadata-from-file=startup-script=host.sh --reserved --valid-until-duration=12h
}

status=0
for ((attempt = 0; attempt <= 3; attempt++)); do
    if ((attempt > 0)); then echo "exit code $status: start $((attempt + 1)) from the queue" >&2; fi
    if [ "$(state)" = NONE ]; then ask; fi
    while true; do
        sleep "$poll"
        now=$(state)
        if [ -n "$(told)" ]; then
            sleep "$poll"  # the other hosts'
            status=$(told)
            break
        fi
        case $now in
        SUSPENDING | SUSPENDED | NONE) status=75 && break ;;
        FAILED) status=1 && break ;;
        esac
    done
    if [ "$now" != NONE ]; then remove; fi
    if ((status != 75 && status <= 127)); then break; fi
done
exit "$status"
