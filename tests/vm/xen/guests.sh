# Shared functions of scripts in the first domain of Xen that have guests with shell.sh, to be sourced by bash.
# $OUT has vmlinux and initramfs of the guests; $folder is for files of the script.

# The guest's first disk, as the store has it.
XVDA=51712

# Usage: config NAME DISK…; prints the configuration of a guest with these disk lines.
config() {
  cat <<CONFIG
name = "$1"
kernel = "$OUT/vmlinux"
ramdisk = "$OUT/initramfs"
memory = 192
on_poweroff = "destroy"
on_crash = "destroy"
extra = "console=hvc0 quiet panic=1 mitigations=off norandmaps random.trust_cpu=on rdinit=/shell"
disk = [ $(printf '"%s", ' "${@:2}") ]
CONFIG
}

# Usage: console NAME; prints the path of the log of a guest's console.
console() {
  echo "$XEN_LOGS/console/guest-$1.log"
}

# Usage: create NAME DISK…; starts a guest. ${manager[NAME]} is the process that manages it.
declare -A manager
create() {
  config "$@" >"$folder/$1.config"
  echo 0 >"$folder/$1.commands"
  xl create -F "$folder/$1.config" >"$folder/$1.xl" 2>&1 &
  manager[$1]=$!
}

# Usage: is_up NAME; waits until a guest takes commands. Sets ${domain[NAME]}.
declare -A domain
is_up() {
  local deadline=$((SECONDS + 480))
  until grep -q "guest: ready" "$(console "$1")"; do
    [ "$SECONDS" -lt "$deadline" ] && kill -0 "${manager[$1]}" || {
      cat "$folder/$1.xl" "$(console "$1")"
      return 1
    }
    sleep 1
  done 2>/dev/null
  domain[$1]=$(xl domid "$1")
}

# Usage: own NAME KEY; prints a value of the backend of a guest's disk.
own() {
  xenstore-read "backend/vbd3/${domain[$1]}/$XVDA/$2"
}

# Usage: states NAME; prints the states of both sides of a guest's disk.
states() {
  echo "$(own "$1" state) $(xenstore-read "/local/domain/${domain[$1]}/device/vbd/$XVDA/state")"
}

# Usage: tell NAME COMMAND…; has a guest run a command. Sets $number to that of the command.
tell() {
  read -r number <"$folder/$1.commands"
  number=$((number + 1))
  echo "$number" >"$folder/$1.commands"
  printf '%s\n' "$number ${*:2}" >"$(xenstore-read "/local/domain/${domain[$1]}/console/tty")"
}

# Usage: in_guest NAME COMMAND…; runs a command in a guest, and prints what it prints there.
in_guest() {
  local log ended number
  log=$(console "$1")
  tell "$@"
  within 240 grep -q "^guest: $number ended" "$log" || {
    tail -n 5 "$log"
    return 1
  }
  tr -d '\r' <"$log" | sed -n "/^guest: $number begins/,/^guest: $number ended/p" | sed '1d;$d'
  ended=$(tr -d '\r' <"$log" | sed -n "s/^guest: $number ended with //p")
  return "$ended"
}

# Usage: tapdisks; prints the number of tapdisks.
tapdisks() {
  find /run/blktap-control -name 'ctl*' | wc -l
}

# Usage: channels NAME; prints how many event channels of the first domain lead to a guest.
channels() {
  lsevtchn 0 | grep "Remote Domain ${domain[$1]}\b" | wc -l
}

# Usage: start_tapback; in the foreground of another process, whose log is in $folder/tapback.log.
start_tapback() {
  tapback -d -v >>"$folder/tapback.log" 2>&1 &
  tapback=$!
}

# Usage: stop_tapback; whether it ends in order.
stop_tapback() {
  kill "$tapback" && wait "$tapback"
}
