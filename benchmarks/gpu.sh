#!/usr/bin/env bash
# Everything that needs a card, in one command and under 8 minutes: tests, then tables and JSON.
#
#     bash benchmarks/gpu.sh [FOLDER]          # results go there; by default benchmarks/results
#     PEER=DIR bash benchmarks/gpu.sh          # DIR has the original's Python files: train against it
#
# Needs torch, transformers and accelerate; the tests, pytest and what ptune itself needs, too.
set -uo pipefail
cd "$(dirname "$0")/.."
out=${1:-benchmarks/results}
mkdir -p "$out"
export PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}" PYTHONUNBUFFERED=1
if ! python3 -c "import torch; assert torch.cuda.is_available()" 2>/dev/null; then
    echo "python3 has no torch that sees a card" >&2
    exit 1
fi
failed=0
end=$((SECONDS + 470))

run() { # NAME COMMAND...: what is slow may not keep others from their turn
    local name=$1 left=$((end - SECONDS))
    shift
    echo "== $name: $*"
    if ((left < 10)); then
        echo "no time left"
        failed=1
        return
    fi
    timeout "$((left < 150 ? left : 150))" "$@" 2>&1 | tee "$out/$name.txt" || failed=1
}

run train_step python3 benchmarks/train_step.py --size 6b ${PEER:+--peer "$PEER"} \
    --json "$out/train_step.json"
run generate python3 benchmarks/generate.py --size 6b --records 128 --rounds 2 \
    --json "$out/generate.json"
if python3 -c "import pytest, datasets, jieba, nltk, rouge_chinese, sentencepiece" 2>/dev/null; then
    run tests python3 -m pytest -m gpu tests -q -p no:cacheprovider
else
    echo "== tests: left out; they need pytest and what ptune needs (pip install -e . pytest)"
fi
run dequantize python3 benchmarks/dequantize.py --json "$out/dequantize.json"
run decode python3 benchmarks/quantized_decode.py --bits 4 --json "$out/decode.json"
run memory python3 benchmarks/memory.py --json "$out/memory.json"
exit "$failed"
