#!/bin/bash
# Properties of nbd devices only: two interfaces, several connections, users without an exclusive open, and
# the device that a dead tapdisk leaves behind.
#
#   nbd.sh DENO
#
# Needs FACTS.

deno=$1
here=$(dirname "$0")
# shellcheck source=tests/vm/guest/facts.sh
. "$here/facts.sh"

MIB=$((1024 * 1024))
folder=$SCRATCH/nbd_ways
mkdir -p "$folder"
cd "$folder" || exit

# Usage: create [OPTION…]; creates a device of a new image; sets node, sysfs, pid and minor.
create() {
  rm -f disk.vhd
  vhd-util create -n "$folder/disk.vhd" -s 64 -S 1024 || return
  node=$(tap-ctl create -a "vhd:$folder/disk.vhd" --device nbd "$@") || return
  sysfs=/sys/block/${node##*/}
  find_device
}

find_device() {
  [[ $(tap-ctl list -f "$folder/disk.vhd") =~ ^pid=([0-9]+)\ minor=([0-9]+)\  ]] || return
  pid=${BASH_REMATCH[1]} minor=${BASH_REMATCH[2]}
}

destroy() {
  tap-ctl destroy -p "$pid" -m "$minor"
}

# Usage: load [OPTION…]; writes at random places with direct I/O, 32 requests in flight, and reads back.
load() {
  fio --name=load --filename="$node" --size=4m --rw=randwrite --bs=4k --ioengine=libaio --iodepth=32 \
    --direct=1 --verify=crc32c --verify_fatal=1 --aux-path="$folder" "$@"
}

# Usage: begin_load SECONDS; end_load waits for the load, and fails if the load failed.
begin_load() {
  load --time_based --runtime="$1" >load.log 2>&1 &
  loader=$!
  within 120 loaded
}

end_load() {
  wait "$loader" || {
    tail -n 30 load.log
    return 1
  }
}

loaded() {
  local before
  before=$(awk '{ print $5 }' "$sysfs/stat")
  sleep 0.3
  [ "$(awk '{ print $5 }' "$sysfs/stat")" -gt "$before" ]
}

free() {
  ! [ -e "$sysfs/pid" ] && is 0 cat "$sysfs/size"
}

hold_open() {
  exec {held}<"$node"
}

let_go() {
  exec {held}<&-
}

grow() {
  tap-ctl pause -p "$pid" -m "$minor" && vhd-util resize -n "$folder/disk.vhd" -s 96 -f &&
    tap-ctl unpause -p "$pid" -m "$minor" && within 5 is $((96 * MIB)) blockdev --getsize64 "$node"
}

# A new process takes over the device, whose users go on.
upgraded() {
  local now
  now=$(tap-ctl upgrade -p "$pid") || return
  [ "$now" != "$pid" ] && find_device && is "$now" echo "$pid" && [ -e "$sysfs/pid" ]
}

by_netlink() {
  check "by netlink: a device is made" create || return
  check "by netlink: fio verifies at depth 32" load
  begin_load 40
  check "by netlink: a new tapdisk takes the device over" upgraded
  check "by netlink: and another one" upgraded
  check "by netlink: fio notices nothing of two upgrades" end_load
  hold_open
  check "by netlink: destroy is refused while somebody only reads: EBUSY" fails_with 16 destroy
  check "by netlink: and the device goes on" load
  let_go
  begin_load 18
  check "by netlink: a pause begins" tap-ctl pause -p "$pid" -m "$minor"
  # Twice the time after which the kernel checks for unanswered requests.
  sleep 11
  check "by netlink: and ends" tap-ctl unpause -p "$pid" -m "$minor"
  check "by netlink: fio notices nothing of a pause longer than the kernel likes" end_load
  begin_load 18
  kill -9 "$pid"
  sleep 6
  check "by netlink: a tapdisk that has been dead for a while is replaced" \
    recovers "$node" "$minor"
  check "by netlink: fio notices nothing of that" end_load
  find_device
  check "by netlink: nbd-client disconnects it" nbd-client -d "$node"
  check "by netlink: destroy after that is in order" destroy
  check "by netlink: the device is free" free
  create
  kill -9 "$pid"
  check "by netlink: destroy ends what a killed tapdisk left" destroy
  check "by netlink: that is free, too" free
}

by_ioctl() {
  export BLKTAP_NBD_INTERFACE=ioctl
  check "by ioctl: a device is made" create || return
  check "by ioctl: it has a write cache, so that flushes arrive" \
    is "write back" cat "$sysfs/queue/write_cache"
  check "by ioctl: fio verifies at depth 32" load
  hold_open
  check "by ioctl: destroy is refused while somebody only reads: EBUSY" fails_with 16 destroy
  let_go
  check "by ioctl: it grows" grow
  check "by ioctl: destroy" destroy
  check "by ioctl: the device is free" free
  create
  kill -9 "$pid"
  check "by ioctl: the kernel frees what a killed tapdisk had" within 5 free
  check "by ioctl: there is nothing to recover: ENODEV" fails_with 19 tap-ctl recover -m "$minor"
  check "by ioctl: destroy clears up" destroy
  unset BLKTAP_NBD_INTERFACE
}

several_connections() {
  export BLKTAP_NBD_CONNECTIONS=4
  check "4 connections: a device is made" create || return
  check "4 connections: fio verifies at depth 32" load
  kill -9 "$pid"
  check "4 connections: destroy ends what a killed tapdisk left" destroy
  check "4 connections: the device is free" free
  unset BLKTAP_NBD_CONNECTIONS
}

# Usage: cycles netlink|ioctl COUNT; creates and removes devices, and checks for leftovers.
cycles() {
  "$deno" run -A --no-lock --v8-flags=--expose-gc "$here/device_cycles.ts" "$1" 1 "$2"
}

by_netlink
by_ioctl
several_connections
check "30 devices by netlink leave nothing behind" cycles netlink 30
check "30 devices by ioctl leave nothing behind" cycles ioctl 30
check "the kernel has no complaint" eval '! dmesg | grep -E "WARNING:|BUG:|blocked for more"'
