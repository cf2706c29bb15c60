#!/usr/bin/env bash
# Start a run: ./launch.sh local train --config configs/tiny_autoencoder.py
#
# `local` runs on the devices of this machine. What follows it is a videomv command.
set -euo pipefail

usage() {
    echo "usage: $0 local COMMAND [OPTIONS]" >&2
    exit 2
}

[ $# -ge 2 ] || usage
place=$1
shift
case $place in
local)
    # Memory grows with use, so that evaluation can run beside training.
    export XLA_PYTHON_CLIENT_PREALLOCATE=${XLA_PYTHON_CLIENT_PREALLOCATE:-false}
    # C++ logs of levels below error hide the progress of the run.
    export TF_CPP_MIN_LOG_LEVEL=${TF_CPP_MIN_LOG_LEVEL:-2}
    cd "$(dirname "$0")"
    exec "${PYTHON:-python}" -m videomv_jax.cli.main "$@"
    ;;
*) usage ;;
esac
