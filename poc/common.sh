# Where the federation of `make poc` lives; read by the scripts beside it.
#
#   POC        its folder (runs/poc)
#   BIN        the programs of its Python environment (.venv/bin)

ROOT="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
POC="${POC:-$ROOT/runs/poc}"
BIN="${BIN:-$ROOT/.venv/bin}"
PATH="$BIN:$PATH"
# NVFlare keeps the workspace it used last in the home folder; ours shall not change the user's.
CONFIG_HOME="$POC/home"
export PATH NVFLARE_POC_WORKSPACE="$POC/workspace"

KITS="$POC/workspace/gradward/prod_00"
ADMIN="$KITS/admin@gradward.example"

flare() {
    HOME="$CONFIG_HOME" nvflare "$@" </dev/null
}

# Live processes of this federation's server and sites, their watchdogs included; not the consoles.
processes() {
    pgrep -f "nvflare\.private\..*$KITS/|$KITS/.*/sub_start\.sh" || true
}
