#!/usr/bin/env bash
# Trains on this machine: on its accelerators, or on N simulated devices of its CPU.
#   launch/local.sh --config configs/represent.py
#   DEVICES=8 launch/local.sh --config configs/demo.py
set -eu
cd "$(dirname "$0")/.."
export JAX_COMPILATION_CACHE_DIR="${JAX_COMPILATION_CACHE_DIR:-$PWD/build/compiled}"
exec "${PYTHON:-python}" -m lae_jax.main --devices "${DEVICES:-0}" "$@"
