#!/usr/bin/env bash
# Everything that needs a card, in one command and under 8 minutes: tests, then tables and JSON.
#
#     bash benchmarks/gpu.sh [FOLDER]          # results go there; by default benchmarks/results
#
# Needs torch, transformers, accelerate and pytest; ptune itself need not be installed.
set -uo pipefail
cd "$(dirname "$0")/.."
out=${1:-benchmarks/results}
mkdir -p "$out"
export PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}" PYTHONUNBUFFERED=1
failed=0

run() { # NAME SECONDS COMMAND...
    local name=$1 seconds=$2
    shift 2
    echo "== $name: $*"
    timeout "$seconds" "$@" 2>&1 | tee "$out/$name.txt" || failed=1
}

run tests 120 python3 -m pytest -m gpu tests -q -p no:cacheprovider
run dequantize 40 python3 benchmarks/dequantize.py --json "$out/dequantize.json"
run decode 40 python3 benchmarks/quantized_decode.py --bits 4 --json "$out/decode.json"
run memory 100 python3 benchmarks/memory.py --json "$out/memory.json"
run train_step 150 python3 benchmarks/train_step.py --size 6b --json "$out/train_step.json"
run generate 150 python3 benchmarks/generate.py --size 6b --json "$out/generate.json"
exit "$failed"
