#!/usr/bin/env bash
# Trains on this machine: on its accelerators, on simulated devices of its CPU, or as several processes that work
# together like the hosts of a cluster. All other launch scripts call this one.
#   launch/local.sh --config configs/represent.py --config.init_from=runs/pretrain
#   DEVICES=8 launch/local.sh --config configs/small.py                  8 simulated devices
#   DEVICES=4 PROCESSES=2 launch/local.sh --config configs/small.py      2 processes of 4 simulated devices
# Data on gs:// (--config.data.path=, --config.faces= or --config.people=gs://...) is copied to DATA_CACHE first.
# Settings from the environment, with their defaults:
#   PYTHON=python   DATA_CACHE=${TMPDIR:-/tmp}/lae_jax   JAX_COMPILATION_CACHE_DIR=build/compiled
#   LOGS=build/logs   GRACE=60     with several processes: folder for the output of all but the first; seconds from the
#                                  first failure until the remaining processes are killed
# The exit status is that of lae_jax.main (docs/scaling.md). With several processes it is that of the first one that
# failed, or 2, 3, 5 or 6 if any process ended with it.
set -euo pipefail
cd "$(dirname "$0")/.."

PYTHON=${PYTHON:-python}
DEVICES=${DEVICES:-0}
PROCESSES=${PROCESSES:-1}
export JAX_COMPILATION_CACHE_DIR="${JAX_COMPILATION_CACHE_DIR:-$PWD/build/compiled}"

fail() {
  echo "launch/local.sh: $1" >&2
  exit 2
}

command -v "$PYTHON" >/dev/null || fail "there is no $PYTHON: 'make setup' and '. .venv/bin/activate', or set PYTHON"

# array_record opens local files only.
copy_to_local_disk() {
  local folder="${DATA_CACHE:-${TMPDIR:-/tmp}/lae_jax}/${1#gs://}"
  command -v gcloud >/dev/null ||
    fail "gcloud, which copies $1 to a local disk, is missing: install the Google Cloud CLI, or mount the bucket"
  mkdir -p "$folder"
  gcloud storage rsync --recursive "$1" "$folder" >&2 || return
  echo "$folder"
}

words=()
for word in "$@"; do
  case $word in
    --config*.path=gs://* | --config.faces=gs://* | --config.people=gs://*)
      folder=$(copy_to_local_disk "${word#*=}")
      word=${word%%=*}=$folder
      ;;
  esac
  words+=("$word")
done
set -- --devices "$DEVICES" ${words[@]+"${words[@]}"}

if [ "$PROCESSES" -eq 1 ]; then
  exec "$PYTHON" -m lae_jax.main "$@"
fi

[ "$DEVICES" -gt 0 ] || fail "PROCESSES=$PROCESSES needs DEVICES, the simulated devices of each"
LOGS=${LOGS:-build/logs}
GRACE=${GRACE:-60}
mkdir -p "$LOGS"
port=$((20000 + RANDOM % 12000))
while (exec 3<>"/dev/tcp/127.0.0.1/$port") 2>/dev/null; do port=$((20000 + RANDOM % 12000)); done

pids=()
pass_on() {
  for pid in ${pids[@]+"${pids[@]}"}; do kill -s "$1" "$pid" 2>/dev/null || true; done
}
trap 'pass_on TERM' TERM
trap 'pass_on INT' INT

# Job control puts every process in a separate group. A Ctrl-C then reaches only this script, which passes it on once:
# a second signal would make the processes end without saving.
set -m
for ((i = 0; i < PROCESSES; i++)); do
  command=("$PYTHON" -m lae_jax.main --coordinator "127.0.0.1:$port" --processes "$PROCESSES" --process "$i"
    --expect_hosts "$PROCESSES" --expect_devices $((PROCESSES * DEVICES)) "$@")
  if [ "$i" -eq 0 ]; then
    "${command[@]}" &
  else
    "${command[@]}" >"$LOGS/process-$i.log" 2>&1 &
  fi
  pids+=($!)
done
set +m

status=0
deadline=
while [ ${#pids[@]} -gt 0 ]; do
  for i in "${!pids[@]}"; do
    pid=${pids[i]}
    kill -0 "$pid" 2>/dev/null && continue
    this=0
    wait "$pid" || this=$?
    unset "pids[i]"
    [ "$this" -ne 0 ] || continue
    echo "launch/local.sh: process $i ended with status $this" >&2
    case $status,$this in
      0,* | 75,* | *,[2356]) status=$this ;;
    esac
    [ -z "$deadline" ] || continue
    deadline=$((SECONDS + GRACE))
    # The other processes cannot continue alone. After 75 they are already saving.
    if [ "$this" -ne 75 ]; then
      [ "$i" -eq 0 ] || tail -n 20 "$LOGS/process-$i.log" >&2
      pass_on TERM
    fi
  done
  if [ -n "$deadline" ] && [ "$SECONDS" -ge "$deadline" ]; then
    for pid in ${pids[@]+"${pids[@]}"}; do kill -s KILL -- "-$pid" 2>/dev/null || true; done
  fi
  sleep 0.2 || true # a Ctrl-C ends it too
done
exit "$status"
