#!/bin/bash
# A guest of Xen whose disk a toolstack other than xl made: the nodes in Xen's store are those that XenServer's
# xenopsd and its script write. xl only makes the domain.
#
#   nodes.sh NAME
#
# Needs what dom0.sh sets. $OUT must have base.vhd, its child disk.vhd, vmlinux and initramfs of the
# guest, and before.sum and after.sum, the checksums of its disk before and after guest.sh. Leaves the
# images in $OUT/NAME.

here=$(dirname "$0")
folder=$SCRATCH/$1
# shellcheck source=tests/vm/guest/facts.sh
. "$here/../guest/facts.sh"

SECTORS=65552
XVDA=51712
said=$XEN_LOGS/console/guest-$1.log

config() {
  cat <<CONFIG
name = "$1"
kernel = "$OUT/vmlinux"
ramdisk = "$OUT/initramfs"
memory = 192
on_poweroff = "destroy"
on_crash = "destroy"
extra = "console=hvc0 quiet panic=1 rdinit=/guest guest.disks=xvda guest.before=$(cat "$OUT/before.sum") guest.after=$(cat "$OUT/after.sum")"
CONFIG
}

# Usage: make_folder PATH PERMISSION…; makes a folder in the store with these permissions.
make_folder() {
  xenstore-write "$1" "" && xenstore-chmod "$1" "${@:2}"
}

# Usage: add_device; writes the nodes of both sides, as one transaction each.
add_device() {
  make_folder "$front" "n$domain" r0 && make_folder "$back" n0 "r$domain" &&
    xenstore-write "$front/backend" "$back" "$front/backend-id" 0 "$front/state" 1 \
      "$front/virtual-device" "$XVDA" "$front/device-type" disk &&
    xenstore-write "$back/frontend" "$front" "$back/frontend-id" "$domain" "$back/online" 1 \
      "$back/removable" 1 "$back/state" 1 "$back/dev" xvda "$back/type" phy "$back/mode" w \
      "$back/params" "nbd:unix:$socket:exportname=disk"
}

# Usage: plugged; does what the script does after the nodes are written.
plugged() {
  xenstore-write "$back/physical-device-path" "$(readlink -f "$socket")" &&
    xenstore-write "$back/hotplug-status" connected
}

# Usage: removed; whether tapback has left the ring after the guest has ended; removes the other side.
removed() {
  within 60 is 6 xenstore-read "$back/state" && xenstore-rm "$back"
}

# Usage: guest_says TEXT; whether the guest's console has this text.
guest_says() {
  grep -F "guest: xvda $1" "$said"
}

stopped() {
  kill "$tapback" && wait "$tapback"
}

mkdir -p "$folder"
cp "$OUT/base.vhd" "$OUT/disk.vhd" "$folder/"
tapback -d -v >"$folder/tapback.log" 2>&1 &
tapback=$!
check "tap-ctl makes a disk without a block device" \
  tap-ctl create -a "vhd:$folder/disk.vhd" --device none || exit
socket=$(find /run/blktap-control -name 'nbd[1-9]*.[0-9]*')
pid=$(basename "$socket" | sed 's/nbd\([0-9]*\).*/\1/')
minor=${socket##*.}

config "$1" >"$folder/config"
xl create -F "$folder/config" >"$folder/xl" 2>&1 &
xl=$!
within 120 xl domid "$1" >/dev/null 2>&1
domain=$(xl domid "$1")
front=/local/domain/$domain/device/vbd/$XVDA
back=/local/domain/0/backend/vbd3/$domain/$XVDA
check "a toolstack writes the nodes of a disk" add_device
check "tapback waits for the toolstack's script" within 60 is 2 xenstore-read "$back/state"
check "the toolstack's script names the tapdisk's socket" plugged
check "the guest gets the disk" within 120 is 4 xenstore-read "$back/state"
check "the tapdisk is named, for tools that set its priority" is "$pid" xenstore-read "$back/kthread-pid"
check "the guest ends" wait "$xl"
check "the toolstack takes the disk away" removed
check "the tapdisk ends" tap-ctl destroy -p "$pid" -m "$minor"
check "tapback ends" stopped
cat "$folder/xl" "$folder/tapback.log" "$said"
check "the disk has the image's size, and a write cache" \
  guest_says "has $SECTORS sectors of 512, write back"
check "the disk holds what its image held" guest_says "as it should be before"
check "the disk holds what the guest wrote" guest_says "as it should be after"
check "vhd-util check -p finds nothing in the image" vhd-util check -p -n "$folder/disk.vhd"
mkdir -p "$OUT/$1"
cp "$folder"/*.vhd "$OUT/$1/"
