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

# Usage: is_up NAME; waits until a guest takes commands. Sets ${domain[NAME]}, and the end of
# its console, ${tty[NAME]}.
declare -A domain=() tty=()
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
  tty[$1]=$(xenstore-read "/local/domain/${domain[$1]}/console/tty")
}

# Usage: has_started NAME; whether a guest has taken commands. One that has not takes none later.
has_started() {
  [ -n "${domain[$1]-}" ] || {
    echo "The guest $1 has not started" >&2
    return 1
  }
}

# Usage: own NAME KEY; prints a value of the backend of a guest's disk.
own() {
  has_started "$1" || return
  xenstore-read "backend/vbd3/${domain[$1]}/$XVDA/$2"
}

# Usage: states NAME; prints the states of both sides of a guest's disk.
states() {
  has_started "$1" || return
  echo "$(own "$1" state) $(xenstore-read "/local/domain/${domain[$1]}/device/vbd/$XVDA/state")"
}

# Usage: tell NAME COMMAND…; has a guest run a command. Sets $number to that of the command.
tell() {
  has_started "$1" || return
  read -r number <"$folder/$1.commands"
  number=$((number + 1))
  echo "$number" >"$folder/$1.commands"
  printf '%s\n' "$number ${*:2}" >"${tty[$1]}"
}

# Usage: in_guest NAME COMMAND…; runs a command in a guest, and prints what it prints there. The log is read without
# other programs: to start one takes an emulated machine long.
in_guest() {
  local number line begun printed deadline=$((SECONDS + 240))
  tell "$@" || return
  while [ "$SECONDS" -lt "$deadline" ]; do
    begun=no printed=
    while IFS= read -r line; do
      line=${line%$'\r'}
      case $line in
        "guest: $number begins") begun=yes ;;
        "guest: $number ended with "*)
          printf %s "$printed"
          return "${line##* }"
          ;;
        *) [ "$begun" = no ] || printed+=$line$'\n' ;;
      esac
    done <"$XEN_LOGS/console/guest-$1.log"
    sleep 0.2
  done
  tail -n 5 "$XEN_LOGS/console/guest-$1.log"
  return 1
}

# Usage: tapdisks; prints the number of tapdisks. One that was upgraded has links of earlier names.
tapdisks() {
  find /run/blktap-control -name 'ctl*' -type s | wc -l
}

# Usage: channels NAME; prints how many event channels of the first domain lead to a guest.
channels() {
  has_started "$1" || return
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
