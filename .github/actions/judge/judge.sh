#!/usr/bin/env bash
# Runs keel judge for the action: reports into a folder, the verdict to the summary and the outputs.
# Reads CANDIDATE, AGAINST, SUITES, TARGET, OPTIONS, REPORTS, TOO_FEW_ITEMS; exits as the step should.
set -uo pipefail

reports=${REPORTS:-keel-judge}
mkdir -p "$reports" || exit 2
verdict=$reports/verdict
rm -f "$verdict.json" "$verdict.md" "$verdict.xml"

words=("$CANDIDATE" --against "$AGAINST" --suites "$SUITES" --json)
words+=(--markdown "$verdict.md" --junit "$verdict.xml")
[[ -n ${TARGET:-} ]] && words+=(--target "$TARGET")
while IFS= read -r word; do
  [[ -n $word ]] && words+=("$word")
done <<<"${OPTIONS:-}"

keel judge "${words[@]}" >"$verdict.json"
code=$?

outcome=error accepted=false
if [[ $code == 0 || $code == 1 || $code == 3 ]] && [[ -s $verdict.json ]]; then
  outcome=$(python -c 'import json, sys; print(json.load(open(sys.argv[1]))["outcome"])' "$verdict.json")
  [[ $code == 0 ]] && accepted=true
else
  rm -f "$verdict.json"
fi

{
  echo "outcome=$outcome"
  echo "accepted=$accepted"
  echo "exit-code=$code"
} >>"${GITHUB_OUTPUT:-/dev/stdout}"
if [[ -s $verdict.md ]]; then
  cat "$verdict.md" >>"${GITHUB_STEP_SUMMARY:-/dev/stdout}"
fi

if [[ $code == 3 && ${TOO_FEW_ITEMS:-fail} == pass ]]; then
  exit 0
fi
exit "$code"
