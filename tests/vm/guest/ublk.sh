#!/bin/bash
# Properties of ublk devices only: several queues, users without an exclusive open, a device that a killed
# tapdisk leaves behind and that no other tapdisk can take over, and users whose disk is removed.
#
#   ublk.sh DENO
#
# Needs FACTS.

deno=$1
here=$(dirname "$0")
# shellcheck source=tests/vm/guest/facts.sh
. "$here/facts.sh"

folder=$SCRATCH/ublk_ways
mount=/mnt/ublk_ways
mkdir -p "$folder" "$mount"
cd "$folder" || exit

# Usage: create [OPTION…]; creates a device of a new image; sets node, sysfs, pid and minor.
create() {
  rm -f disk.vhd
  vhd-util create -n "$folder/disk.vhd" -s 64 || return
  node=$(tap-ctl create -a "vhd:$folder/disk.vhd" --device ublk "$@") || return
  sysfs=/sys/block/${node##*/}
  own=/dev/ublkc${node#/dev/ublkb}
  find_device
}

find_device() {
  [[ $(tap-ctl list -f "$folder/disk.vhd") =~ ^pid=([0-9]+)\ minor=([0-9]+)\  ]] || return
  pid=${BASH_REMATCH[1]} minor=${BASH_REMATCH[2]}
}

destroy() {
  tap-ctl destroy -p "$pid" -m "$minor"
}

# Usage: load [OPTION…]; writes at random places with direct I/O from two processes, and reads back.
load() {
  fio --name=load --filename="$node" --size=2m --offset_increment=2m --numjobs=2 --rw=randwrite --bs=4k \
    --ioengine=libaio --iodepth=32 --direct=1 --verify=crc32c --verify_fatal=1 --aux-path="$folder" "$@"
}

gone() {
  ! [ -e "$sysfs" ] && ! [ -e "$node" ] && ! [ -e "$own" ]
}

hold_open() {
  exec {held}<>"$node"
}

let_go() {
  exec {held}<&-
}

several_queues() {
  check "a device is made" create || return
  check "it has a queue for each of two processors" is "$(printf '0\n1')" ls "$sysfs/mq"
  check "each of 32 requests" is 32 cat "$sysfs/mq/0/nr_tags"
  check "a request has up to 256 KiB" is 256 cat "$sysfs/queue/max_hw_sectors_kb"
  check "writes can be forced to the disk" is 1 cat "$sysfs/queue/fua"
  check "fio verifies from two processes at depth 32" load
  check "fio verifies requests of 1 MiB" load --bs=1m
  check "zeroes are written by telling so" fallocate --zero-range --length 1MiB "$node"
  check "and are there" cmp -n $((1024 * 1024)) "$node" /dev/zero
  hold_open
  check "destroy is refused while somebody has it open: EBUSY" fails_with 16 destroy
  check "and the device goes on" load
  let_go
}

grows() {
  tap-ctl pause -p "$pid" -m "$minor"
  vhd-util resize -n disk.vhd -s 128 -j journal
  check "its image grows while it is paused" tap-ctl unpause -p "$pid" -m "$minor"
  check "a device that nobody uses has the new size" \
    is $((128 * 1024 * 1024)) blockdev --getsize64 "$node"
}

image_gone() {
  kill -9 "$pid"
  mv disk.vhd kept.vhd
  hold_open
  check "what a killed tapdisk left stays while somebody has it open: EBUSY" fails_with 16 destroy
  let_go
  check "destroy takes it away though its image is gone" destroy
  check "nothing of it is left" gone
  mv kept.vhd disk.vhd
  check "the image is in order" vhd-util check -n disk.vhd
}

users_dropped() {
  check "a device is made again" create || return
  mkfs.ext4 -q -F "$node" && mount "$node" "$mount"
  check "close --force takes it from a mounted filesystem" tap-ctl close -p "$pid" -m "$minor" --force
  tap-ctl detach -p "$pid" -m "$minor"
  tap-ctl free -m "$minor"
  check "whose user gets errors" fails_with 1 dd if=/dev/zero of="$mount/file" bs=1M count=1 conv=fsync
  umount "$mount"
  former=$own
  check "another is made" create
  check "with which the former is gone at the latest" eval '[ "$own" = "$former" ] || ! [ -e "$former" ]'
  kill "$pid"
  check "SIGTERM ends a tapdisk and takes its device away" within 120 gone
}

# Usage: recovered; kills the tapdisk under a load, which must end well after tap-ctl recover.
recovered() {
  load --rate_iops=200 >load.log 2>&1 &
  local loader=$!
  sleep 2
  kill -9 "$pid"
  recovers "$node" "$minor" || return
  wait "$loader" || {
    cat load.log
    return 1
  }
}

qcow2_disk() {
  td-util create "qcow2:$folder/base.qcow2" 64Mi
  td-util snapshot "qcow2:$folder/base.qcow2" "qcow2:$folder/disk.qcow2"
  node=$(tap-ctl create -a "qcow2:$folder/disk.qcow2" --device ublk)
  check "a QCOW2 on a QCOW2 is a device" test -b "$node" || return
  [[ $(tap-ctl list -f "$folder/disk.qcow2") =~ ^pid=([0-9]+)\ minor=([0-9]+)\  ]]
  pid=${BASH_REMATCH[1]} minor=${BASH_REMATCH[2]}
  check "fio verifies a QCOW2 over a kill of its tapdisk and tap-ctl recover" recovered
  [[ $(tap-ctl list -f "$folder/disk.qcow2") =~ ^pid=([0-9]+)\  ]] && pid=${BASH_REMATCH[1]}
  head -c 8M /dev/urandom >noise
  dd if=noise of="$node" bs=1M seek=16 oflag=direct status=none
  check "a discard gives its room back" given_back
  check "it is taken away" destroy
  check "td-util finds no faults of it" td-util check "qcow2:$folder/disk.qcow2"
}

given_back() {
  local before after
  before=$(stat -c %b disk.qcow2)
  blkdiscard -o 16M -l 8M "$node" || return
  # The room of the discard is given back with the next change.
  dd if=noise of="$node" bs=64K count=1 seek=512 oflag=direct status=none
  after=$(stat -c %b disk.qcow2)
  echo "$before blocks, then $after"
  [ "$after" -lt $((before - 7 * 2048)) ]
}

# Usage: cycles COUNT; creates and removes devices, and checks for leftovers.
cycles() {
  "$deno" run -A --no-lock --v8-flags=--expose-gc "$here/device_cycles.ts" ublk 2 "$1"
}

modprobe ublk_drv
several_queues
grows
image_gone
users_dropped
qcow2_disk
check "devices that come and go leave nothing behind" cycles 30
