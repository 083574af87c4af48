#!/bin/bash
# A block device of one kind, from its creation to the final contents of the image.
#
#   device.sh ublk|nbd
#
# Needs FACTS. Leaves disk.vhd, and device.raw as read here, in $OUT/KIND for checks outside.

kind=$1
here=$(dirname "$0")
# shellcheck source=tests/vm/guest/facts.sh
. "$here/facts.sh"

MIB=$((1024 * 1024))
physical=4096
# The kernel's nbd has one size for both.
[ "$kind" != nbd ] || physical=512
folder=$SCRATCH/$kind
mount=/mnt/$kind
project=$(realpath "$here/../../..")
mkdir -p "$folder" "$mount" "$OUT/$kind"
cd "$folder" || exit

# Usage: find_device IMAGE; sets pid and minor of the device of an image.
find_device() {
  local line
  line=$(tap-ctl list -f "$1")
  [[ $line =~ ^pid=([0-9]+)\ minor=([0-9]+)\ state=0\ args=vhd:$1$ ]] || {
    printf '%s\n' "$line"
    return 1
  }
  pid=${BASH_REMATCH[1]} minor=${BASH_REMATCH[2]}
}

# Usage: process_with IMAGE; prints the number of the process that has it open.
process_with() {
  find /proc/[0-9]*/fd -lname "$1" 2>/dev/null | sed -n '1s,^/proc/\([0-9]*\)/.*,\1,p'
}

# Usage: queue NAME; prints a value of the device's queue in sysfs.
queue() {
  cat "/sys/block/${node##*/}/queue/$1"
}

# Usage: load FILE; writes 2 MiB to a file of the mounted filesystem at random places with direct I/O, and
# reads them back.
load() {
  fio --name=load --filename="$mount/$1" --size=2m --rw=randwrite --bs=4k --ioengine=libaio \
    --iodepth=16 --direct=1 --rate_iops=100 --verify=crc32c --verify_fatal=1 --aux-path="$folder"
}

# Usage: begin_load; repeats the load until end_load, which fails if the load failed.
begin_load() {
  rm -f stop
  {
    while ! [ -e stop ]; do load load || exit; done
  } >load.log 2>&1 &
  loader=$!
  within 240 loaded
}

end_load() {
  touch stop
  wait "$loader" || {
    local status=$?
    tail -n 30 load.log
    return "$status"
  }
}

# Usage: loaded; whether the device completes writes.
loaded() {
  local before
  before=$(written)
  sleep 0.3
  [ "$(written)" -gt "$before" ]
}

# Usage: written; prints the number of completed writes of the device.
written() {
  awk '{ print $5 }' "/sys/block/${node##*/}/stat"
}

still() {
  local before
  sleep 0.5
  before=$(written)
  sleep 1
  [ "$(written)" -eq "$before" ]
}

same_tree() {
  echo 1 >/proc/sys/vm/drop_caches
  diff -r "$folder/tree" "$mount/tree"
}

kernel_messages() {
  ! dmesg | tail -n "+$((messages + 1))" |
    grep -E "error.*${node##*/}|${node##*/}.*error|EXT4-fs error|WARNING:|BUG:|blocked for more"
}

kernel_has_kind() {
  tap-ctl check | grep -x "$kind: ok"
}

begin() {
  messages=$(dmesg | wc -l)
  check "check says that the kernel has this kind" kernel_has_kind || exit 1
  vhd-util create -n "$folder/base.vhd" -s 96
  node=$(tap-ctl create -a "vhd:$folder/base.vhd" --device "$kind")
  check "create prints the node of a block device" test -b "$node" || exit 1
  check "lsblk lists a disk" is disk lsblk -dno TYPE "$node"
  check "lsblk has its size, sectors and mode" \
    is "$((96 * MIB)) 512 $physical 0" lsblk -bdnro SIZE,LOG-SEC,PHY-SEC,RO "$node"
  check "its size is the image's" is $((96 * MIB)) blockdev --getsize64 "$node"
  check "sysfs has its size, in sectors" is $((96 * MIB / 512)) cat "/sys/block/${node##*/}/size"
  check "its logical block size is 512" is 512 queue logical_block_size
  check "its physical block size is that of VHDs, where it can tell" \
    is "$physical" queue physical_block_size
  check "it is writable" is 0 cat "/sys/block/${node##*/}/ro"
  check "it has a write cache, so that flushes arrive" is "write back" queue write_cache
  check "what it says of discarding holds" discarding
}

discarding() {
  local most
  most=$(queue discard_max_bytes)
  printf 'discard_max_bytes is %s\n' "$most"
  if [ "$most" -eq 0 ]; then
    fails_with 1 blkdiscard "$node"
  else
    blkdiscard "$node" && is 0 lsblk -dnro DISC-ZERO "$node"
  fi
}

files() {
  check "mkfs.ext4 makes a filesystem" mkfs.ext4 -q -F "$node" || exit 1
  check "it mounts" mount "$node" "$mount" || exit 1
  mkdir tree
  cp -r "$project/src/vhd" "$project/src/vbd" "$project/tests/data" tree/
  cp -r tree "$mount/"
  sync
  check "a tree of files is there again, from the disk" same_tree
  check "fio verifies what it wrote past the page cache" load first
}

snapshot() {
  check "list has the device with its process, its minor and its image" \
    find_device "$folder/base.vhd" || exit 1
  begin_load
  check "snapshot of the running device" \
    tap-ctl snapshot -p "$pid" -m "$minor" -n "$folder/disk.vhd"
  check "fio notices nothing of the snapshot" end_load
  check "the new image is on top of the old one" \
    is "$folder/base.vhd" vhd-util query -p -n "$folder/disk.vhd"
}

pause() {
  begin_load
  check "pause under load" tap-ctl pause -p "$pid" -m "$minor"
  check "no request is answered while it is paused" still
  check "its image grows while it is paused" \
    vhd-util resize -n "$folder/disk.vhd" -s 128 -j "$folder/journal"
  check "unpause" tap-ctl unpause -p "$pid" -m "$minor"
  check "fio notices nothing of the pause" end_load
  if can_resize; then
    check "the device has the new size" within 120 is $((128 * MIB)) blockdev --getsize64 "$node"
    check "the mounted filesystem grows onto it" resize2fs "$node"
  else
    skip "the device has the new size" "Linux $(uname -r) cannot change the size of a ublk device"
    skip "the mounted filesystem grows onto it" "the device has its old size"
  fi
}

# UBLK_CMD_UPDATE_SIZE exists since Linux 6.16.
can_resize() {
  [ "$kind" != ublk ] || [ "$(printf '6.16\n%s\n' "$(uname -r)" | sort -V | head -n 1)" = 6.16 ]
}

recovered() {
  recovers "$node" "$minor" && within 120 loaded
}

takeover() {
  begin_load
  kill -9 "$pid"
  check "recover takes over the device of a killed tapdisk" recovered
  pid=$(process_with "$folder/disk.vhd")
  check "fio notices nothing of the killing" end_load
  check "the files are as they were" same_tree
}

refuse() {
  check "destroy of a mounted device is refused: EBUSY" \
    fails_with 16 tap-ctl destroy -p "$pid" -m "$minor"
  check "and the device goes on" load after
}

end() {
  check "it unmounts" umount "$mount"
  check "fsck finds nothing" fsck.ext4 -fn "$node"
  check "the kernel has nothing to say" kernel_messages
  blockdev --flushbufs "$node"
  dd if="$node" bs=1M conv=sparse of="$OUT/$kind/device.raw" 2>/dev/null
  size=$(blockdev --getsize64 "$node")
  check "destroy takes the device away" tap-ctl destroy -p "$pid" -m "$minor"
  check "its node has no disk any more" no_disk
  check "no tapdisk is left of it" within 120 process_is_gone
  check "vhd-util check -p finds nothing" vhd-util check -p -n "$folder/disk.vhd"
  check "the parent grows to the size of the snapshot" \
    vhd-util resize -n "$folder/base.vhd" -s 128 -j "$folder/journal"
  check "coalesce writes the snapshot into its parent" vhd-util coalesce -n "$folder/disk.vhd"
  check "vhd-util check finds nothing in the parent" vhd-util check -n "$folder/base.vhd"
  cp --sparse=always "$folder/base.vhd" "$OUT/$kind/disk.vhd"
  cp -r tree "$OUT/$kind/"
}

# Whether the node has not the device any more. A script beside this one may have taken the free node: its
# disks have other sizes.
no_disk() {
  ! [ -b "$node" ] || ! is "$size" blockdev --getsize64 "$node"
}

process_is_gone() {
  ! [ -e "/proc/$pid" ]
}

read_only() {
  node=$(tap-ctl create -R -a "vhd:$folder/base.vhd" --device "$kind")
  check "create -R makes a device that says so in sysfs" is 1 cat "/sys/block/${node##*/}/ro"
  check "it has the size that the image got" is $((128 * MIB)) blockdev --getsize64 "$node"
  check "writing to it is refused" fails_with 1 dd if=/dev/zero of="$node" bs=4k count=1 oflag=direct
  check "its filesystem mounts read-only" mount -o ro "$node" "$mount"
  check "and the files are there" same_tree
  umount "$mount"
  pid=$(process_with "$folder/base.vhd")
  minor=$(basename /run/blktap-control/nbd"$pid".* | sed 's/.*\.//')
  check "destroy of the read-only device" tap-ctl destroy -p "$pid" -m "$minor"
}

begin
files
snapshot
pause
takeover
refuse
end
read_only
