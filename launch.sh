#!/usr/bin/env bash
# Start a videomv command on one machine or many. The command is the same everywhere;
# a training run that is started again resumes.
#
#   ./launch.sh local  [OPTIONS] -- COMMAND ...
#   ./launch.sh slurm  [OPTIONS] -- COMMAND ...
#   ./launch.sh tpu-vm --name NAME --zone ZONE [OPTIONS] -- COMMAND ...
#   ./launch.sh gke    --name NAME --image IMAGE --topology TYPE:SHAPE [OPTIONS] -- ...
#
# Options of every place:
#   --dry-run          print exactly what would run, and run nothing
#   --restarts N       start again up to N times after a failure (default 0; gke 3),
#                      10, 20, 40 ... at most 300 s later
# local:   --devices cpu:8 (fake devices) or 0,1 (GPUs); --processes N on this machine
# slurm:   --nodes N (default 1), --gpus-per-node N (default 8), --time T, --partition P
# tpu-vm:  --folder DIR, where this repository lies on every worker (default videomv_jax)
# gke:     --slices N (default 1); --topology such as v5e:16x16 or v6e:4x4
set -euo pipefail

usage() {
    echo "usage:" >&2
    sed -n '2,/^set/p' "$0" | sed -e '/^set/d' -e 's/^# \{0,1\}//' >&2
    exit 2
}
fail() {
    echo "error: $*" >&2
    exit 2
}

[ $# -ge 1 ] || usage
place=$1
shift
dry_run=false restarts='' devices='' processes=1 nodes=1 gpus=8 time='' partition=''
name='' zone='' folder=videomv_jax image='' topology='' slices=1
while [ $# -gt 0 ] && [[ $1 == --* ]]; do
    option=$1
    shift
    case $option in
    --) break ;;
    --dry-run) dry_run=true && continue ;;
    --help) usage ;;
    esac
    [ $# -gt 0 ] || fail "$option: wants a value"
    case $option in
    --restarts) restarts=$1 ;;
    --devices) devices=$1 ;;
    --processes) processes=$1 ;;
    --nodes) nodes=$1 ;;
    --gpus-per-node) gpus=$1 ;;
    --time) time=$1 ;;
    --partition) partition=$1 ;;
    --name) name=$1 ;;
    --zone) zone=$1 ;;
    --folder) folder=$1 ;;
    --image) image=$1 ;;
    --topology) topology=$1 ;;
    --slices) slices=$1 ;;
    *) fail "unknown option $option" ;;
    esac
    shift
done
[ $# -ge 1 ] || fail "no videomv command, such as: train --config configs/...py"
for number in "${restarts:-0}" "$processes" "$nodes" "$gpus" "$slices"; do
    [[ $number =~ ^[0-9]+$ ]] || fail "got '$number', want a number"
done

quoted() { printf '%q ' "$@" | sed 's/ $//'; }

# Runs its arguments, again after failures; prints them in a dry run.
run() {
    if $dry_run; then
        quoted "$@"
        echo
        return
    fi
    local left=${restarts:-0} pause=10 code
    while true; do
        code=0
        "$@" || code=$?
        # 2: bad input, 130: Ctrl-C; neither gets better by itself.
        [ "$code" -ne 0 ] && [ "$code" -ne 2 ] && [ "$code" -ne 130 ] || return "$code"
        [ "$left" -gt 0 ] || return "$code"
        left=$((left - 1))
        echo "exit code $code; again in $pause s, $left more after that" >&2
        sleep "$pause"
        pause=$((pause * 2 > 300 ? 300 : pause * 2))
    done
}

# Environment of every process: memory grows with use, so that evaluation can run beside
# training; C++ logs of levels below error hide the progress of the run.
common=(
    "XLA_PYTHON_CLIENT_PREALLOCATE=${XLA_PYTHON_CLIENT_PREALLOCATE:-false}"
    "TF_CPP_MIN_LOG_LEVEL=${TF_CPP_MIN_LOG_LEVEL:-2}"
)
python=${PYTHON:-python}
cd "$(dirname "$0")"

# Several processes of this machine: all end when one fails, and all get the signals.
together() {
    local pids=() code=0 pid
    for ((i = 0; i < processes; i++)); do
        JAX_PROCESS_ID=$i "$@" &
        pids+=($!)
    done
    trap 'kill -TERM "${pids[@]}" 2>/dev/null || true' TERM INT
    for pid in "${pids[@]}"; do
        if ! wait "$pid"; then
            code=1
            kill -TERM "${pids[@]}" 2>/dev/null || true
        fi
    done
    trap - TERM INT
    return $code
}

case $place in
local)
    case $devices in
    '') ;;
    cpu | cpu:*)
        count=${devices#cpu}
        flags="--xla_force_host_platform_device_count=${count#:}"
        common+=("JAX_PLATFORMS=cpu")
        [ -z "$count" ] || common+=("XLA_FLAGS=${XLA_FLAGS:+$XLA_FLAGS }$flags")
        ;;
    *) common+=("CUDA_VISIBLE_DEVICES=$devices") ;;
    esac
    command=(env "${common[@]}" "$python" -m videomv_jax.cli.main "$@")
    if [ "$processes" -gt 1 ]; then
        port=${PORT:-12355}
        command=(
            env "JAX_COORDINATOR_ADDRESS=127.0.0.1:$port" "JAX_NUM_PROCESSES=$processes"
            "${command[@]:1}"
        )
        if $dry_run; then
            for ((i = 0; i < processes; i++)); do
                quoted env "JAX_PROCESS_ID=$i" "${command[@]:1}"
                echo
            done
            exit
        fi
        run together "${command[@]}"
    elif $dry_run || [ "${restarts:-0}" -gt 0 ]; then
        run "${command[@]}"
    else
        exec "${command[@]}"
    fi
    ;;
slurm)
    # A process for each GPU, which is what JAX makes of Slurm's variables. Slurm's
    # SIGTERM comes 120 s before the end of the time: the run saves, and the same line
    # goes on. A preempted job is requeued and resumes.
    options=(--nodes="$nodes" --ntasks-per-node="$gpus" --gpus-per-node="$gpus")
    options+=(--job-name="${name:-videomv}" --requeue --signal=TERM@120)
    [ -z "$time" ] || options+=(--time="$time")
    [ -z "$partition" ] || options+=(--partition="$partition")
    inner="$(quoted srun --kill-on-bad-exit=1 env "${common[@]}" VIDEOMV_DISTRIBUTED=1 \
        "$python" -m videomv_jax.cli.main "$@")"
    script="#!/usr/bin/env bash
left=${restarts:-0} pause=10
until $inner; do
    [ \$left -gt 0 ] || exit 1
    left=\$((left - 1)); sleep \$pause; pause=\$((pause * 2 > 300 ? 300 : pause * 2))
done"
    if $dry_run; then
        echo "$(quoted sbatch "${options[@]}") <<'SCRIPT'"
        echo "$script"
        echo SCRIPT
    else
        sbatch "${options[@]}" <<<"$script"
    fi
    ;;
tpu-vm)
    [ -n "$name" ] && [ -n "$zone" ] || fail "tpu-vm wants --name and --zone"
    inner="cd $(quoted "$folder") && $(quoted env "${common[@]}" VIDEOMV_DISTRIBUTED=1 \
        "$python" -m videomv_jax.cli.main "$@")"
    run gcloud compute tpus tpu-vm ssh "$name" --zone="$zone" --worker=all \
        --command="$inner"
    ;;
gke)
    [ -n "$name" ] && [ -n "$image" ] && [ -n "$topology" ] ||
        fail "gke wants --name, --image and --topology"
    shape=${topology#*:}
    chips=1
    for side in ${shape//x/ }; do chips=$((chips * side)); done
    case ${topology%%:*} in
    v5e) kind=tpu-v5-lite-podslice per_host=4 ;;
    v5p) kind=tpu-v5p-slice per_host=4 ;;
    v6e) kind=tpu-v6e-slice per_host=4 ;;
    *) fail "--topology: got '$topology', want v5e:, v5p: or v6e: and a shape" ;;
    esac
    [ "$chips" -ge "$per_host" ] || per_host=$chips
    hosts=$((chips / per_host))
    arguments=''
    for word in "$python" -m videomv_jax.cli.main "$@"; do
        word=${word//\\/\\\\}
        arguments+="${arguments:+, }\"${word//\"/\\\"}\""
    done
    manifest="apiVersion: jobset.x-k8s.io/v1alpha2
kind: JobSet
metadata:
  name: $name
  annotations:
    alpha.jobset.sigs.k8s.io/exclusive-topology: cloud.google.com/gke-nodepool
spec:
  failurePolicy:
    maxRestarts: ${restarts:-3}
  replicatedJobs:
  - name: slice
    replicas: $slices
    template:
      spec:
        parallelism: $hosts
        completions: $hosts
        backoffLimit: 0
        template:
          spec:
            restartPolicy: Never
            terminationGracePeriodSeconds: 120
            nodeSelector:
              cloud.google.com/gke-tpu-accelerator: $kind
              cloud.google.com/gke-tpu-topology: $shape
            containers:
            - name: videomv
              image: $image
              command: [$arguments]
              env:
              - {name: VIDEOMV_DISTRIBUTED, value: \"1\"}
              - {name: TF_CPP_MIN_LOG_LEVEL, value: \"2\"}
              resources:
                requests: {google.com/tpu: $per_host}
                limits: {google.com/tpu: $per_host}"
    if $dry_run; then
        echo "kubectl apply -f - <<'MANIFEST'"
        echo "$manifest"
        echo MANIFEST
    else
        kubectl apply -f - <<<"$manifest"
    fi
    ;;
*) usage ;;
esac
