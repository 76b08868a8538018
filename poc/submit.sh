#!/usr/bin/env bash
# Submit a job to the federation of poc/start.sh, follow it, download its result, build its report.
#
#   poc/submit.sh jobs/quickstart
set -euo pipefail
source "$(dirname "$0")/common.sh"
if [ $# -ne 1 ]; then
    echo "Usage: poc/submit.sh JOB_FOLDER" >&2
    exit 2
fi
gradward submit "$1" --kit "$ADMIN" --out "$POC/results"
