#!/usr/bin/env bash
# Stop the federation of poc/start.sh and wait until none of its processes lives.
set -euo pipefail
source "$(dirname "$0")/common.sh"
if [ ! -d "$KITS" ]; then
    echo "There is no federation in $POC."
    exit 0
fi
flare poc stop || true
for _ in $(seq 60); do
    [ -z "$(processes)" ] && echo "Stopped." && exit 0
    sleep 1
done
echo "Still running after a minute, now killed: $(processes | tr '\n' ' ')" >&2
processes | xargs -r kill -9
