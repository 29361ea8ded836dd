#!/usr/bin/env bash
# Prints docs/cli.md from the binaries' own option trees.
set -euo pipefail
bin=$(dirname "$0")/../${CARGO_TARGET_DIR:-target}/release
[[ ${CARGO_TARGET_DIR:-target} == /* ]] && bin=$CARGO_TARGET_DIR/release
printf '# Command line\n\nMade by `bash docs/cli.sh > docs/cli.md`; a check says when it is stale.\n\n'
"$bin/quantize" generate markdown
"$bin/evaluate" generate markdown
"$bin/study" generate markdown
