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
  check "SIGTERM ends a tapdisk and takes its device away" within 20 gone
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
check "devices that come and go leave nothing behind" cycles 30
