#!/usr/bin/env bash
# Twelve configurations on one calibration set against single runs: what sharing their statistics saves.
#
#   study/benches/sweep.sh [MODEL [SAMPLES LENGTH [TEXT]]]
#
# Both are run here, one after the other, on the same machine; the ratio is what counts. The target: twelve cost less than
# three. TEXT is calibration text; the demo model brings its own.
set -euo pipefail
model=${1:-demo} samples=${2:-64} length=${3:-256} text=${4:-demo:prose}
study=${STUDY:-$(dirname "$0")/../../target/release/study}
quantize=${QUANTIZE:-$(dirname "$study")/quantize}
folder=$(mktemp -d); trap 'rm -rf "$folder"' EXIT
seconds() { local from; from=$(date +%s.%N); "$@" >"$folder/log" 2>&1 || { cat "$folder/log" >&2; exit 1; }; echo "$(date +%s.%N) - $from" | bc; }

single=$(seconds "$quantize" "$model" --out "$folder/single" --method gptq --bits 4 --group-size 64 --inputs original \
  --calibration "$text" --samples "$samples" --sequence-length "$length")

cat >"$folder/sweep.toml" <<TOML
name = "sweep"
question = "What do twelve configurations cost?"
shortcut-check = false
[settings]
model = "$model"
inputs = "original"
bits = [4, 3, 2]
group-size = [32, 64]
damping = [0.01, 0.1]
[calibration.text]
sources = ["$text"]
samples = $samples
sequence-length = $length
[evaluation.text]
text = "${EVALUATION:-demo:prose-heldout}"
protocol = "hf-disjoint"
window = 64
max-tokens = 64
TOML
twelve=$(seconds "$study" run "$folder/sweep.toml")
printf 'model %s, %s windows of %s tokens\none run of quantize: %.1f s\ntwelve configurations, measured on one window each: %.1f s, %.2f single runs\n' \
  "$model" "$samples" "$length" "$single" "$twelve" "$(echo "$twelve / $single" | bc -l)"
