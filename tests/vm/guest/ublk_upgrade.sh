#!/bin/bash
# A new tapdisk takes over a ublk device whose users go on, and a crash of one that has all requests of a device.
#
#   ublk_upgrade.sh DENO [COUNT]
#
# COUNT upgrades, 2 if it is left out, follow on each other. Needs FACTS. Prints how long users waited.

deno=$1
count=${2:-2}
here=$(dirname "$0")
# shellcheck source=tests/vm/guest/facts.sh
. "$here/facts.sh"

folder=$SCRATCH/ublk_upgrade
export BLKTAP_LOG_DIR=$folder/log
mkdir -p "$BLKTAP_LOG_DIR"
cd "$folder" || exit

find_device() {
  [[ $(tap-ctl list -f "$folder/disk.vhd") =~ ^pid=([0-9]+)\ minor=([0-9]+)\  ]] || return
  pid=${BASH_REMATCH[1]} minor=${BASH_REMATCH[2]}
}

create() {
  rm -f disk.vhd
  vhd-util create -n "$folder/disk.vhd" -s 64 || return
  node=$(tap-ctl create -a "vhd:$folder/disk.vhd" --device ublk) || return
  sysfs=/sys/block/${node##*/}
  find_device
}

# Usage: begin_load NAME [OPTION…]; writes at random places with direct I/O again and again, and reads back.
# It gets the processors when nobody else wants them: in emulation, a new tapdisk would not start in time.
begin_load() {
  name=$1
  rm -f stop
  {
    while ! [ -e stop ]; do
      chrt -i 0 fio --name=load --filename="$node" --size=4m --offset_increment=4m --rw=randwrite --bs=4k --ioengine=libaio \
        --direct=1 --verify=crc32c --verify_fatal=1 --aux-path="$folder" --output-format=json \
        --output="$name.json" "${@:2}" || exit
      cat "$name.json" >>"$name.all"
    done
  } >"$name.log" 2>&1 &
  loader=$!
  within 300 loaded
}

loaded() {
  local before
  before=$(awk '{ print $5 }' "$sysfs/stat")
  sleep 0.3
  [ "$(awk '{ print $5 }' "$sysfs/stat")" -gt "$before" ]
}

# Usage: end_load; fails if the load failed, and prints the longest request.
end_load() {
  touch stop
  wait "$loader" || {
    tail -n 30 "$name.log"
    return 1
  }
  awk '/"clat_ns"/ { on = 1 } on && /"max"/ { gsub(/[^0-9]/, ""); if ($0 + 0 > max) max = $0 + 0; on = 0 }
    END { printf "longest request: %.1f ms\n", max / 1e6 }' "$name.all" >>"$OUT/ublk_upgrade.times"
}

upgraded() {
  local now
  now=$(tap-ctl upgrade -p "$pid") || return
  [ "$now" != "$pid" ] && find_device && is "$now" echo "$pid" && [ -b "$node" ]
}

# Usage: several COUNT; upgrades in a row, while the load goes on.
several() {
  local i
  for ((i = 1; i <= $1; i++)); do
    within 300 upgraded || return
    within 300 loaded || return
  done
}

# Usage: waits; prints how long each upgrade let users wait, by the log.
waits() {
  grep -ho "users waited.*\|Took /dev/ublkb.*" "$BLKTAP_LOG_DIR/tapdisk.log" >>"$OUT/ublk_upgrade.times"
}

failed_upgrades() {
  "$deno" run -A --quiet "$here/failing_upgrades.ts" "$pid"
}

same_process() {
  local before=$pid
  find_device && is "$before" echo "$pid"
}

# Usage: recovered; kills a tapdisk that has as many requests as there are, and another takes over.
recovered() {
  local since=$SECONDS
  kill -9 "$pid"
  recovers "$node" "$minor" || return
  echo "recovered after $((SECONDS - since)) s" >>"$OUT/ublk_upgrade.times"
  within 300 find_device && within 300 loaded
}

no_warnings() {
  ! dmesg | tail -n "+$((messages + 1))" | grep -E "WARNING:|BUG:|blocked for more|I/O error, dev ${node##*/}"
}

modprobe ublk_drv
messages=$(dmesg | wc -l)
check "a device is made" create || exit 1
begin_load saturated --iodepth=64 --numjobs=2 --loops=4
check "as many requests as it takes: a new tapdisk takes the device over, again and again" several "$count"
check "new processes that fail leave the device to the old one" failed_upgrades
check "which serves it" same_process
check "fio verifies over all that" end_load
begin_load single --iodepth=1
check "one request at a time: a new tapdisk takes the device over" several 1
check "fio verifies over that, too" end_load
begin_load crash --iodepth=64 --numjobs=2 --loops=4
check "a killed tapdisk with as many requests as there are is replaced" recovered
check "fio notices nothing of that" end_load
check "a device that nobody uses, and that was recovered, is taken over" within 300 upgraded
check "the log says how long users waited" waits
check "the kernel has nothing to say" no_warnings
check "destroy takes the device away" tap-ctl destroy -p "$pid" -m "$minor"
check "the image is in order" vhd-util check -n disk.vhd
