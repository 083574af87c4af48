#!/bin/bash
# Guests of Xen whose disks tapback connects, made by xl and its script block-tap.
#
#   tapback.sh NAME
#
# Needs what dom0.sh sets. $OUT must have vmlinux and initramfs of the guests, base.vhd, its child disk.vhd,
# copies, the arguments of `copy` of shell.sh, and after.sum, the checksum of the disk after them. Leaves the images
# in $OUT/NAME, with one.sum, the checksum that the guest saw last. $OUT/NAME.upgrades has how long an upgrade took.

here=$(dirname "$0")
folder=$SCRATCH/$1
# shellcheck source=tests/vm/guest/facts.sh
. "$here/../guest/facts.sh"
# shellcheck source=tests/vm/xen/guests.sh
. "$here/guests.sh"

SECTORS=16388
MORE_SECTORS=20480
leaf=$folder/leaf.vhd

# Usage: line IMAGE; prints xl's line of a disk.
line() {
  echo "vdev=xvda,backendtype=tap,format=vhd,target=$1"
}

# Usage: features NAME; prints what tapback offers to a guest.
features() {
  for key in barrier flush-cache discard max-indirect-segments; do own "$1" "feature-$key"; done | xargs
}

# Usage: copies NAME; copies within a guest's disk what the file copies has.
copies() {
  while read -r arguments; do
    # shellcheck disable=SC2086
    in_guest "$1" copy xvda $arguments || return
  done <"$OUT/copies"
}

# Usage: room; prints how much room the image takes.
room() {
  stat -c %b "$folder/disk.vhd"
}

discards() {
  local before
  before=$(room)
  in_guest one blkdiscard -o $((5 << 20)) -l $((1 << 20)) /dev/xvda && [ "$(room)" -lt "$before" ]
}

# Usage: counted; whether xentop has counters of the guest's disk.
counted() {
  xentop -b -x -i 1 | tee /dev/stderr |
    grep -q 'VBD Tapdisk3 51712 .* RD: *[1-9][0-9]* *WR: *[1-9][0-9]* *RSECT: *[1-9][0-9]*'
}

# Usage: tap COMMAND ARGUMENT…; runs a command of tap-ctl for the first guest's disk.
tap() {
  tap-ctl "$1" -p "$(own one pid)" -m "$(own one minor)" "${@:2}"
}

# Usage: found; prints what the guest finds of its disk: size, kind of cache, the largest request in KiB.
found() {
  in_guest one 'disk xvda && cat queue/max_hw_sectors_kb' | xargs
}

goes_on() {
  in_guest one further
}

# Usage: snapshot; makes a larger child of the image.
snapshot() {
  vhd-util snapshot -n "$leaf" -p "$folder/disk.vhd" &&
    vhd-util resize -n "$leaf" -s $((MORE_SECTORS / 2048)) -j "$folder/journal"
}

recovered() {
  local before
  before=$(own one pid)
  kill -9 "$before" && tap-ctl recover && within 120 is_moved "$before"
}

# Usage: upgrade PID; upgrades a tapdisk, and prints what tap-ctl says. A step that took an emulated machine longer
# than its limit is tried again: the old process has served on.
upgrade() {
  local said status
  for _ in 1 2 3; do
    status=0
    said=$(tap-ctl upgrade -p "$1" 2>&1) || status=$?
    [[ $said == *ETIMEDOUT* ]] || break
    echo "$said" >&2
  done
  echo "$said"
  return "$status"
}

# Usage: upgraded; whether a new process takes the first guest's disk over, and tapback names it.
upgraded() {
  local before now
  before=$(own one pid)
  now=$(upgrade "$before") && within 60 is "$now" own one pid &&
    is "$now" own one kthread-pid && [ "$now" != "$before" ] || logged
}

# Usage: logged; prints the end of tapdisk's log, and fails.
logged() {
  tail -n 15 "$BLKTAP_LOG_DIR/tapdisk.log"
  return 1
}

# Usage: upgrade_fails; whether an upgrade whose new process cannot map the ring fails, and the old one lives.
upgrade_fails() {
  local before
  before=$(own one pid)
  mv /dev/xen/gntdev /dev/xen/aside
  upgrade "$before" | tee "$folder/upgrade.said"
  mv /dev/xen/aside /dev/xen/gntdev
  grep -q "Cannot open /dev/xen/gntdev" "$folder/upgrade.said" && kill -0 "$before" &&
    is "$before" own one pid || logged
}

# Usage: connects; prints how often tapback has had a ring connected.
connects() {
  grep -c "serves its ring" "$folder/tapback.log"
}

# Usage: is_moved PID; whether another tapdisk than this has the first guest's disk, and lives.
is_moved() {
  [ "$(own one pid)" != "$1" ] && kill -0 "$(own one pid)"
}

# Usage: is_gone NAME; whether nothing is left of a guest, not even a page that is mapped.
is_gone() {
  xl list
  ! xl list | grep -q "^$1 \|(null)" && is 0 channels "$1" && ! own "$1" state
}

lost() {
  is "" in_guest one ls /sys/block
}

export BLKTAP_LOG_DIR=$folder/log
mkdir -p "$BLKTAP_LOG_DIR"
cp "$OUT/base.vhd" "$OUT/disk.vhd" "$folder/"
cp "$OUT/base.vhd" "$folder/two.vhd"

# What runs here has limits that fit a real machine.
xl sched-credit2 -d Domain-0 -w 2048
start_tapback
create one "$(line "$folder/disk.vhd")"
check "xl creates a guest whose disk is tapback's" is_up one || exit
# It starts while the first one is at work.
create two "$(line "$folder/two.vhd")"
check "both sides of the disk are connected" within 60 is "4 4" states one
check "xl's script named the socket of a tapdisk" test -S "$(own one physical-device-path)"
check "tapback offers barriers, flushes, discards and large requests" is "1 1 1 256" features one
check "the guest finds the disk's size, a write cache, and requests of up to 1 MiB" \
  is "$SECTORS 512 write back 1024" found
check "the guest writes in blocks of 512 bytes to 1 MiB" copies one
check "the disk holds what the guest wrote, and else what its image held" \
  is "$(cat "$OUT/after.sum")" in_guest one sum xvda
check "a discard of the guest frees room of the image" discards
check "xentop has counters of the disk" counted

in_guest one begin_load xvda 7 1
check "a load on the disk begins" goes_on
check "tap-ctl pauses the disk" tap pause
check "the load waits" in_guest one stand_still
check "vhd-util makes a snapshot, with a larger size" snapshot
check "the disk goes on with the snapshot's image" tap unpause -a "vhd:$leaf"
check "the load goes on after the snapshot" goes_on
check "the guest is told of the larger size" \
  within 60 is "$MORE_SECTORS" in_guest one cat /sys/block/xvda/size
check "tapback ends" stop_tapback
check "the load goes on without tapback" goes_on
start_tapback
in_guest one 'echo 0 >/tmp/pause'
check "a tapdisk that was killed under load is recovered" recovered
check "the load goes on with the other tapdisk" goes_on
in_guest one 'echo 1 >/tmp/pause'

connected=$(connects)
check "a new tapdisk takes the disk over under load" upgraded
check "the load goes on with the new tapdisk" goes_on
grep -h "users waited" "$BLKTAP_LOG_DIR/tapdisk.log" >"$OUT/$1.upgrades"
check "tapback has not connected the ring again" is "$connected" connects
check "xentop has counters of the disk by the number of the new tapdisk" counted
check "an upgrade fails whose process cannot map the ring" upgrade_fails
check "the load goes on with the same tapdisk" goes_on

check "a second guest has its own disk" is_up two && {
  in_guest two begin_load xvda 3 0
  check "event channels lead to the second guest" test "$(channels two)" -gt 0
  check "xl destroys the second guest under load" xl destroy two
  check "nothing is left of the second guest" within 60 is_gone two
  check "the tapdisk of the second guest has ended" is 1 tapdisks
  check "the load of the first guest goes on" goes_on
}
check "all that the load wrote was read back" is ok in_guest one unload

in_guest one sum xvda >"$folder/one.sum"
check "xl unplugs the disk" xl block-detach one xvda
check "the guest has no disk" within 60 lost
check "no tapdisk is left after the disk was unplugged" is 0 tapdisks
check "xl plugs the disk in again" xl block-attach one "$(line "$leaf")"
check "the guest has the disk again" is "$MORE_SECTORS 512 write back" in_guest one disk xvda
check "the disk holds what it held" is "$(cat "$folder/one.sum")" in_guest one sum xvda
check "the guest makes an ext4 with files" in_guest one make_tree xvda
in_guest one sum xvda >"$folder/one.sum"
tell one poweroff -f
check "the guest ends, and xl clears it away" wait "${manager[one]}"
check "nothing is left of the guest" within 60 is_gone one
check "no tapdisk is left" is 0 tapdisks
check "vhd-util check -p finds nothing" vhd-util check -p -n "$leaf"
cat "$folder"/*.xl "$folder/tapback.log" "$BLKTAP_LOG_DIR/tapdisk.log" "$(console one)"
mkdir -p "$OUT/$1"
cp "$folder"/*.{vhd,sum} "$OUT/$1/"
