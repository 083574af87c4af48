#!/bin/bash
# A guest of Xen with two disks that are block devices of tapdisk. tap-ctl creates xvda; Xen's script
# block-tap creates xvdb with tap-ctl.
#
#   disks.sh ublk|nbd
#
# Needs what dom0.sh sets. $OUT must have base.vhd, its child disk.vhd, vmlinux and initramfs of the
# guest, and the checksums of its disks before and after. Leaves the images in $OUT/KIND, in created and
# attached.

kind=$1
here=$(dirname "$0")
# shellcheck source=tests/vm/guest/facts.sh
. "$here/../guest/facts.sh"

SECTORS=65552
# The disks' numbers in Xen's store.
XVDA=51712
XVDB=51728
folder=$SCRATCH/$kind
image=$folder/attached/disk.vhd
said=$folder/xl

# Usage: vbd NUMBER KEY; prints a value of that disk of the guest in Xen's store.
vbd() {
  xenstore-read "backend/vbd/$domain/$1/$2"
}

# Usage: connected; whether a guest has both disks; sets $domain to that guest.
connected() {
  domain=$(xenstore-list backend/vbd) &&
    [ "$(vbd "$XVDA" hotplug-status)" = connected ] &&
    [ "$(vbd "$XVDB" hotplug-status)" = connected ]
} 2>/dev/null

# Usage: numbers NODE; prints the numbers of a device in the format of Xen's store.
numbers() {
  stat -L -c %t:%T "$1"
}

# Usage: listed IMAGE FIELD; prints a field of that image's device from $folder/list, the output of
# `tap-ctl list --json`.
listed() {
  awk -v RS='}' -v image="\"vhd:$1\"" 'index($0, image)' "$folder/list" |
    sed -n "s/^ *\"$2\": \"\\{0,1\\}\\([^\",]*\\).*/\\1/p"
}

# Usage: config DISK_LINE; prints the guest's configuration with this line for its second disk.
config() {
  cat <<CONFIG
name = "$kind"
kernel = "$OUT/vmlinux"
ramdisk = "$OUT/initramfs"
memory = 256
on_poweroff = "destroy"
on_crash = "destroy"
extra = "console=hvc0 quiet panic=1 rdinit=/guest guest.disks=xvda,xvdb guest.before=$(cat "$OUT/before.sum") guest.after=$(cat "$OUT/after.sum")"
disk = [
  "phy:$node,xvda,w",
  "$1",
]
CONFIG
}

# Usage: start_guest DISK_LINE; starts the guest and waits until it has its disks. Sets $xl to the process
# that manages the guest.
start_guest() {
  config "$1" >"$folder/config"
  # Xen's script calls tap-ctl without the kind of device.
  BLKTAP_DEVICE=$kind xl create -F "$folder/config" >"$said" 2>&1 &
  xl=$!
  # Each check costs the emulated machine time.
  until connected || ! kill -0 "$xl"; do sleep 2; done 2>/dev/null
}

# Usage: destroy IMAGE; destroys the device of an image in the list.
destroy() {
  tap-ctl destroy -p "$(listed "$1" pid)" -m "$(listed "$1" minor)"
}

# Usage: guest_says TEXT; whether the guest's console has this text.
guest_says() {
  grep -F "guest: $1" "$XEN_LOGS/console/guest-$kind.log"
}

# Usage: tapdisks; prints the number of tapdisks.
tapdisks() {
  find /run/blktap-control -name 'ctl*' | wc -l
}

mkdir -p "$folder/created" "$folder/attached"
cp "$OUT/base.vhd" "$OUT/disk.vhd" "$folder/created/"
cp "$OUT/base.vhd" "$OUT/disk.vhd" "$folder/attached/"

node=$(tap-ctl create -a "vhd:$folder/created/disk.vhd" --device "$kind")
check "tap-ctl create makes a block device in the first domain" test -b "$node" || exit

start_guest "format=raw,vdev=xvdb,access=rw,script=block-tap,target=vhd:$image"
check "xl runs its script block-tap, and the guest gets both disks" connected
attached=$(vbd "$XVDB" physical-device-path)
tap-ctl list --json >"$folder/list"
check "xvda is the device that tap-ctl printed" \
  is "$(numbers "$node")" vbd "$XVDA" physical-device
check "xvdb is a block device that Xen's script block-tap made" test -b "$attached"
check "its numbers are in Xen's store" is "$(numbers "$attached")" vbd "$XVDB" physical-device
check "tap-ctl list knows it as the image's" is "$attached" listed "$image" device
check "the guest ends, and xl clears it away" wait "$xl"
check "Xen's script block-tap destroyed the device that it had made" is 1 tapdisks
check "tap-ctl destroy takes away the other" destroy "$folder/created/disk.vhd"
check "no tapdisk is left" is "" tap-ctl list

cat "$said" "$XEN_LOGS/console/guest-$kind.log"
check "xvda has the image's size, and a write cache" \
  guest_says "xvda has $SECTORS sectors of 512, write back"
check "xvda holds what its image held" guest_says "xvda as it should be before"
check "xvda holds what the guest wrote" guest_says "xvda as it should be after"
check "vhd-util check -p finds nothing in its image" \
  vhd-util check -p -n "$folder/created/disk.vhd"
check "xvdb has the image's size, and a write cache" \
  guest_says "xvdb has $SECTORS sectors of 512, write back"
check "xvdb holds what its image held" guest_says "xvdb as it should be before"
check "xvdb holds what the guest wrote" guest_says "xvdb as it should be after"
check "vhd-util check -p finds nothing in the image of xvdb" vhd-util check -p -n "$image"
cp -r "$folder" "$OUT/"
