#!/usr/bin/env bash
# Makes the texts of the studies in this folder: for each domain one part to calibrate on and one to measure on.
#
#   docs/studies/texts.sh DATA
#
# DATA holds the sources below; the parts go to docs/studies/texts, which is not kept under version control. Needs jq.
#
#   domain       source                                         calibrated on          measured on
#   prose        wikitext2/wiki.test.canonical.raw              lines of the first 70 %  of the last 20 %
#   python       python_code/networkx_src.py.txt                lines of the first 70 %  of the last 20 %
#   chinese      zh_text/zh_prose.txt                           lines of the first 70 %  of the last 20 %
#   mathematics  gsm8k/train.jsonl, gsm8k/test.jsonl            train                  test
#   dialogue     instruct/alpaca_seed_tasks.jsonl and           two records of three   the third
#                instruct/self_instruct_user_oriented.jsonl
set -euo pipefail
if (($# != 1)); then sed -n '2,14s/^# \{0,1\}//p' "$0" >&2; exit 2; fi
data=$1 out=$(dirname "$0")/texts
mkdir -p "$out"

# split SOURCE NAME: by lines, so that no character is cut; a tenth between the parts belongs to neither.
split() {
  local lines
  lines=$(wc -l <"$data/$1")
  head -n $((lines * 7 / 10)) "$data/$1" >"$out/$2.calibration.txt"
  tail -n $((lines * 2 / 10)) "$data/$1" >"$out/$2.held-out.txt"
}
split wikitext2/wiki.test.canonical.raw prose
split python_code/networkx_src.py.txt python
split zh_text/zh_prose.txt chinese

problems() { jq -r '"Question: \(.question)\nAnswer: \(.answer)\n"' "$1"; }
problems "$data/gsm8k/train.jsonl" >"$out/mathematics.calibration.txt"
problems "$data/gsm8k/test.jsonl" >"$out/mathematics.held-out.txt"

# Each record's number decides its part, so that both parts hold both sources.
dialogue() {
  cat "$data"/instruct/{alpaca_seed_tasks,self_instruct_user_oriented}.jsonl | jq -rn --argjson third "$1" '
    foreach inputs as $record (-1; . + 1; select((. % 3 == 2) == $third)
    | $record | .instances[0] as $example
    | "User: \(.instruction)\(if $example.input == "" then "" else "\n\($example.input)" end)\nAssistant: \($example.output)\n")'
}
dialogue false >"$out/dialogue.calibration.txt"
dialogue true >"$out/dialogue.held-out.txt"
wc -c "$out"/*.txt
