#!/usr/bin/env bash
# Prepare and start a server and three hospital sites on this machine, and wait until all are there.
#
#   poc/start.sh                     CPU only
#   GPUS="0 1 2" poc/start.sh        these GPUs, dealt out to the sites
#   POLICY=guarded poc/start.sh      another policy of poc/site-policies
set -euo pipefail
source "$(dirname "$0")/common.sh"
GPUS="${GPUS:-}"
POLICY="${POLICY:-audit-only}"

if [ -n "$(processes)" ]; then
    echo "The federation in $POC is running; stop it first: make poc-stop" >&2
    exit 1
fi
mkdir -p "$CONFIG_HOME"
flare poc prepare -i "$ROOT/poc/project.yml" --force

# What NVFlare leaves to each party: see docs/deployment.md.
gradward configure "$KITS/server" --settings "$ROOT/poc/sites/server.json"
for site in site-1 site-2 site-3; do
    gradward configure "$KITS/$site" \
        --settings "$ROOT/poc/sites/$site.json" \
        --policy "$ROOT/poc/site-policies/$POLICY" \
        --gpus "$([ -n "$GPUS" ] && echo 1 || echo 0)"
done

# Its processes read GRADWARD_DATA from here, and nothing else.
flare poc start --timeout 120 ${GPUS:+-gpu $GPUS}
echo "Ready. Submit a job: poc/submit.sh jobs/quickstart"
echo "The admin console:   $ADMIN/startup/fl_admin.sh (user admin@gradward.example)"
