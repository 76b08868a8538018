#!/usr/bin/env bash
# Prepare and start a server and three hospital sites on this machine, and wait until all are there.
#
#   poc/start.sh                     CPU only
#   GPUS="0 1 2" poc/start.sh        these GPUs, dealt out to the sites
#   POLICY=guarded poc/start.sh      another policy of poc/site-policies for all sites
#   POLICY="strict audit-only audit-only" poc/start.sh       one for each
set -euo pipefail
source "$(dirname "$0")/common.sh"
GPUS="${GPUS:-}"
read -r -a POLICIES <<<"${POLICY:-audit-only}"

if [ -n "$(processes)" ]; then
    echo "The federation in $POC is running; stop it first: make poc-stop" >&2
    exit 1
fi
mkdir -p "$CONFIG_HOME"
flare poc prepare -i "$ROOT/poc/project.yml" --force

# What NVFlare leaves to each party: see docs/deployment.md.
gradward configure "$KITS/server" --settings "$ROOT/poc/sites/server.json"
for number in 1 2 3; do
    site="site-$number"
    policy="${POLICIES[number - 1]:-${POLICIES[0]}}"
    gradward configure "$KITS/$site" \
        --settings "$ROOT/poc/sites/$site.json" \
        --policy "$ROOT/poc/site-policies/$policy" \
        --gpus "$([ -n "$GPUS" ] && echo 1 || echo 0)"
done

# Its processes read GRADWARD_DATA from here, and nothing else.
flare poc start --timeout 120 ${GPUS:+-gpu $GPUS}
echo "Ready. Submit a job: poc/submit.sh jobs/quickstart"
echo "The admin console:   $ADMIN/startup/fl_admin.sh (user admin@gradward.example)"
