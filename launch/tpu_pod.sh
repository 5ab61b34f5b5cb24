#!/usr/bin/env bash
# Trains on all workers of a Cloud TPU slice, from a machine that has the Google Cloud CLI. Restarts a run that was
# preempted or failed. Copies this checkout to the workers and installs it, once on each machine.
#   TPU=faces ZONE=us-central1-a EXPECT_HOSTS=4 EXPECT_DEVICES=16 TYPE=v5litepod-16 VERSION=v2-alpha-tpuv5-lite \
#     launch/tpu_pod.sh --config configs/represent.py --config.init_from=gs://bucket/runs/pretrain \
#     --config.data.path=gs://bucket/faces --config.workdir=gs://bucket/runs/represent
# Settings from the environment:
#   TPU, ZONE                      the slice
#   EXPECT_HOSTS, EXPECT_DEVICES   number of its workers, and of the devices that JAX sees on all of them
#   TYPE, VERSION                  accelerator type and runtime, to make a slice that is missing or was preempted
#   CREATE_FLAGS=--spot            flags for making it
#   JAX_COMPILATION_CACHE_DIR      best on gs://, because a worker's disk is lost with the machine
#   LOGS=runs/logs/$TPU            try-1/<worker>.log, ...: the output of each worker
#   TRIES=5, RETRY_WAIT=30         failures in a row until it gives up (a preemption does not count); seconds between tries
#   SETUP                          commands that make .venv on a worker
# With several workers, run 'ssh-add ~/.ssh/google_compute_engine' first. A Ctrl-C makes the run save and end, which takes
# some seconds; a second one ends it at once. Statuses: docs/scaling.md.
set -euo pipefail
cd "$(dirname "$0")/.."

# The part that runs on a worker. Each line of output begins with the worker's name.
if [ "${1:-}" = --on-worker ]; then
  shift
  {
    # A worker that lost its connection may still run the last try and hold the TPU.
    last=$(cat run.pid 2>/dev/null || true)
    if grep -qs 'launch/local.sh\|lae_jax.main' "/proc/$last/cmdline"; then
      kill -TERM "$last"
      timeout 120 tail --pid="$last" -f /dev/null || kill -KILL "$last"
    fi
    launch/local.sh --cluster "$@" 2>&1 &
    echo $! >run.pid
    status=0
    wait $! || status=$?
    echo "exit status $status"
  } | sed -u "s/^/$(hostname): /"
  exit
fi

fail() {
  echo "launch/tpu_pod.sh: $1" >&2
  exit 2
}

for name in TPU ZONE EXPECT_HOSTS EXPECT_DEVICES; do
  [ -n "${!name:-}" ] || fail "$name is not set (see the top of this script)"
done
command -v gcloud >/dev/null || fail "gcloud is missing: install the Google Cloud CLI and run 'gcloud auth login'"
[[ " $* " =~ \ --config\.workdir=(gs://|/) ]] ||
  fail "name a folder that all workers share and that outlives them: --config.workdir=gs://..., or a mount's full path"
LOGS=${LOGS:-runs/logs/$TPU}
TRIES=${TRIES:-5}
RETRY_WAIT=${RETRY_WAIT:-30}
# The workers' own Python may be too old.
SETUP=${SETUP:-"python3 -m pip install --quiet --user uv && python3 -m uv venv --quiet --python 3.12 .venv &&
  python3 -m uv pip install --quiet --python .venv/bin/python -r requirements.txt -e '.[tpu,gcs]'"}

tpu() { # verb, flags
  gcloud compute tpus tpu-vm "$1" "$TPU" --zone="$ZONE" --quiet "${@:2}"
}

on_workers() { # command
  tpu ssh --worker=all --command="$1"
}

make_ready() {
  local state
  state=$(tpu describe --format='value(state)') || state=none
  case $state in
    READY) return ;;
    none | PREEMPTED | TERMINATED) ;;
    *) echo "launch/tpu_pod.sh: $TPU is $state" >&2 && return 1 ;;
  esac
  [ -n "${TYPE:-}" ] && [ -n "${VERSION:-}" ] ||
    fail "there is no READY $TPU in $ZONE: make it, or set TYPE and VERSION"
  [ "$state" = none ] || tpu delete || return
  # shellcheck disable=SC2086  # several flags
  tpu create --accelerator-type="$TYPE" --version="$VERSION" ${CREATE_FLAGS:---spot}
}

install_on_workers() {
  tar --exclude=__pycache__ -czf "$bundle" lae_jax configs launch pyproject.toml requirements.txt README.md LICENSE &&
    gcloud compute tpus tpu-vm scp "$bundle" "$TPU:lae_jax.tgz" --worker=all --zone="$ZONE" --quiet &&
    on_workers "mkdir -p lae_jax && tar -xzf lae_jax.tgz -C lae_jax && cd lae_jax &&
      { cmp -s requirements.txt .venv/made-of || { $SETUP && cp requirements.txt .venv/made-of; }; }"
}

# Returns the highest status of the workers, or 2, 3, 5 or 6 if any worker ended with it; 255 if a worker was lost.
run_on_workers() {
  local logs=$LOGS/try-$try run statuses this ended=0 worst=0
  mkdir -p "$logs"
  echo "launch/tpu_pod.sh: try $try; the workers' output: $logs" >&2
  # In a separate process group, so that a Ctrl-C does not cut the connection before the workers have saved.
  # (gcloud's --output-directory would do the awk's work, but writes to a folder None in version 528.)
  set -m
  on_workers "cd lae_jax && PYTHON=.venv/bin/python
    ${JAX_COMPILATION_CACHE_DIR:+JAX_COMPILATION_CACHE_DIR=${JAX_COMPILATION_CACHE_DIR@Q}}
    export PYTHON JAX_COMPILATION_CACHE_DIR
    launch/tpu_pod.sh --on-worker --expect_hosts $EXPECT_HOSTS --expect_devices $EXPECT_DEVICES $words" |
    awk -v logs="$logs" -F ': ' '{ print substr($0, length($1) + 3) >(logs "/" $1 ".log"); fflush() }' &
  set +m
  run=$!
  while kill -0 "$run" 2>/dev/null; do wait "$run" || true; done
  statuses=$(sed -n 's/^exit status //p' "$logs"/*.log 2>/dev/null) || true
  for this in $statuses; do
    case $this in
      2 | 3 | 5 | 6) return "$this" ;;
    esac
    [ "$this" -le "$worst" ] || worst=$this
    ended=$((ended + 1))
  done
  [ "$ended" -ge "$EXPECT_HOSTS" ] || worst=255
  return "$worst"
}

stopping=
# shellcheck disable=SC2329  # invoked by trap
stop() {
  stopping=1
  echo "launch/tpu_pod.sh: the workers save and end" >&2
  set -m
  on_workers "kill -TERM \$(cat lae_jax/run.pid)" &
  set +m
}
trap 'stop' TERM INT

bundle=$(mktemp)
trap 'rm -f "$bundle"' EXIT
words=$(printf '%q ' "$@")
failures=0
try=1
while [ -e "$LOGS/try-$try" ]; do try=$((try + 1)); done
while [ -z "$stopping" ]; do
  status=0
  if make_ready && install_on_workers; then
    run_on_workers || status=$?
  else
    status=1 # gcloud's own statuses are not those of a run
  fi
  [ -z "$stopping" ] || break
  case $status in
    0 | 2 | 3 | 5 | 6 | 130 | 143) exit "$status" ;;
    75) ;;
    *)
      # The workers may not have had the time to report 75.
      case $(tpu describe --format='value(state)') in PREEMPTED | TERMINATED) status=75 ;; esac
      ;;
  esac
  if [ "$status" -eq 75 ]; then
    echo "launch/tpu_pod.sh: preempted" >&2
    failures=0
  else
    failures=$((failures + 1))
    echo "launch/tpu_pod.sh: status $status, failure $failures of $TRIES in a row" >&2
    [ "$failures" -lt "$TRIES" ] || exit "$status"
    sleep "$RETRY_WAIT" || true
  fi
  try=$((try + 1))
done
exit "$status"
