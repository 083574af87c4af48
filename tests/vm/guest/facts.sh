# Shared functions of the scripts in the machine, to be sourced by bash. Each fact is a test by name
# outside the machine. Facts are written to the file $FACTS and to the console.

set -u

# Usage: fact OUTCOME NAME; standard input has the details.
fact() {
  local line text="$1 $2" script=${FACTS##*/}
  while IFS= read -r line; do text+=$'\n'"  | $line"; done
  printf '%s\n' "$text" >>"$FACTS"
  printf '[%3d s] %s: %s\n' "$SECONDS" "${script%.facts}" "$text"
}

# Usage: check NAME COMMAND…; records whether the command succeeds. The command runs in this shell.
check() {
  local status=0
  "${@:2}" >"$FACTS.output" 2>&1 || status=$?
  if [ "$status" -eq 0 ]; then
    fact ok "$1" </dev/null
    return
  fi
  {
    printf 'Status %s of: %s\n' "$status" "${*:2}"
    tail -n 30 "$FACTS.output"
  } | fact failed "$1"
  return 1
}

# Usage: skip NAME REASON
skip() {
  printf '%s\n' "$2" | fact skipped "$1"
}

# Usage: is EXPECTED COMMAND…; whether the command prints the expected text.
is() {
  local printed
  printed=$("${@:2}") || return
  [ "$printed" = "$1" ] || {
    printf 'Not "%s" but "%s"\n' "$1" "$printed"
    return 1
  }
}

# Usage: fails_with STATUS COMMAND…; whether the command exits with this status.
fails_with() {
  local status=0
  "${@:2}" || status=$?
  [ "$status" -eq "$1" ] || {
    printf 'Not status %s but %s\n' "$1" "$status"
    return 1
  }
}

# Usage: within SECONDS COMMAND…; repeats the command until it succeeds.
within() {
  local deadline=$((SECONDS + $1))
  until "${@:2}"; do
    [ "$SECONDS" -lt "$deadline" ] || return 1
    sleep 0.2
  done
}

# Usage: recovers NODE MINOR; whether tap-ctl recover prints the node. In emulation, the new tapdisk may answer
# too late; it serves the device all the same.
recovers() {
  is "$1" tap-ctl recover -m "$2" 2>"$FACTS.recover" && return
  cat "$FACTS.recover"
  grep -q ETIMEDOUT "$FACTS.recover"
}
