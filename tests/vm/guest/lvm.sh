#!/bin/bash
# VHDs on logical volumes, as XenServer's storage manager (LVHDSR) uses them. A snapshot renames and hides
# a volume and creates new volumes with it as their parent; a coalesce undoes this.
#
#   lvm.sh DISK
#
# Needs FACTS and an empty disk. Leaves disk.vhd and device.raw in $OUT/lvm for checks outside.

# shellcheck source=tests/vm/guest/facts.sh
. "$(dirname "$0")/facts.sh"

disk=$1
vg=VG_XenStorage-0a1b2c3d-0001-0002-0003-000000000004
leaf=VHD-11111111-aaaa-bbbb-cccc-dddddddddddd
base=VHD-22222222-aaaa-bbbb-cccc-dddddddddddd
clone=VHD-33333333-aaaa-bbbb-cccc-dddddddddddd
mount=/mnt/lvm
project=$(realpath "$(dirname "$0")/../../..")
mkdir -p "$OUT/lvm" "$mount" "$SCRATCH/lvm/tree"

# Usage: quietly COMMAND…; runs a command of LVM and prints its output only when it fails.
quietly() {
  "$@" >"$SCRATCH/lvm/log" 2>&1 || {
    local status=$?
    cat "$SCRATCH/lvm/log"
    return "$status"
  }
}

# Usage: scan; makes the scan call of the storage manager, without the sizes.
scan() {
  vhd-util scan --debug -f -m 'VHD-*' -l "$vg" | sed 's/ capacity=.* hidden/ hidden/' | sort
}

# Usage: scanned LINE…; whether scan prints these lines.
scanned() {
  is "$(printf '%s\n' "$@" | sort)" scan
}

same_tree() {
  echo 1 >/proc/sys/vm/drop_caches
  diff -r "$SCRATCH/lvm/tree" "$mount/tree"
}

begin() {
  check "a group of volumes on the machine's second disk" quietly make_group || exit 1
  check "vhd-util create makes an image on a volume" vhd-util create --debug -n "/dev/$vg/$leaf" -s 64 ||
    exit 1
  check "check finds nothing in it" vhd-util check -n "/dev/$vg/$leaf"
  check "scan -l finds it" scanned "vhd=$leaf hidden=0 parent=none"
  node=$(tap-ctl create -a "vhd:/dev/$vg/$leaf")
  check "create makes a block device of it" test -b "$node" || exit 1
  [[ $(tap-ctl list) =~ pid=([0-9]+)\ minor=([0-9]+)\ state=0\ args=vhd:/dev/$vg/ ]]
  pid=${BASH_REMATCH[1]} minor=${BASH_REMATCH[2]}
  check "mkfs.ext4 makes a filesystem" mkfs.ext4 -q -F "$node" || exit 1
  check "it mounts" mount "$node" "$mount" || exit 1
  cp -r "$project/tests/data" "$SCRATCH/lvm/tree/first"
  cp -r "$SCRATCH/lvm/tree" "$mount/"
}

make_group() {
  pvcreate "$disk" && vgcreate "$vg" "$disk" && lvcreate -y -n "$leaf" -L 72M "$vg"
}

# The steps of LVHDSR between pause and unpause.
make_snapshot() {
  lvrename "$vg" "$leaf" "$base" && lvcreate -y -n "$leaf" -L 72M "$vg" &&
    lvcreate -y -n "$clone" -L 8M "$vg" &&
    vhd-util snapshot --debug -n "/dev/$vg/$leaf" -p "/dev/$vg/$base" &&
    vhd-util snapshot --debug -n "/dev/$vg/$clone" -p "/dev/$vg/$base" &&
    vhd-util set --debug -n "/dev/$vg/$base" -f hidden -v 1 && lvchange -p r "$vg/$base"
}

snapshot() {
  sync
  check "pause of the mounted device" tap-ctl pause -p "$pid" -m "$minor"
  check "its volume is renamed and hidden, and has two children" quietly make_snapshot
  check "unpause with the new leaf" tap-ctl unpause -p "$pid" -m "$minor" -a "vhd:/dev/$vg/$leaf"
  check "the files are there" same_tree
  cp -r "$project/src/vhd" "$SCRATCH/lvm/tree/second"
  cp -r "$SCRATCH/lvm/tree/second" "$mount/tree/"
  sync
  check "those written to the new leaf, too" same_tree
  check "scan -l finds the family" scanned \
    "vhd=$base hidden=1 parent=none" "vhd=$leaf hidden=0 parent=$base" "vhd=$clone hidden=0 parent=$base"
  quietly lvchange -a n "$vg/$clone"
  check "scan -l finds it, too, where a volume is not active" scanned \
    "vhd=$base hidden=1 parent=none" "vhd=$leaf hidden=0 parent=$base" "vhd=$clone hidden=0 parent=$base"
}

# The clone is removed. The data of the leaf is coalesced into the base, which becomes the leaf.
merge() {
  lvremove -f "$vg/$clone" && lvchange -p rw "$vg/$base" &&
    vhd-util coalesce --debug -n "/dev/$vg/$leaf" && lvremove -f "$vg/$leaf" &&
    lvrename "$vg" "$base" "$leaf" &&
    vhd-util set --debug -n "/dev/$vg/$leaf" -f hidden -v 0
}

coalesce() {
  check "pause of the snapshot's device" tap-ctl pause -p "$pid" -m "$minor"
  check "coalesce into the base, which becomes the leaf" quietly merge
  check "unpause with it" tap-ctl unpause -p "$pid" -m "$minor" -a "vhd:/dev/$vg/$leaf"
  check "all files are there" same_tree
  check "scan -l finds one image again" scanned "vhd=$leaf hidden=0 parent=none"
}

end() {
  check "it unmounts" umount "$mount"
  check "fsck finds nothing" fsck.ext4 -fn "$node"
  blockdev --flushbufs "$node"
  dd if="$node" bs=1M conv=sparse of="$OUT/lvm/device.raw" 2>/dev/null
  check "destroy takes the device away" tap-ctl destroy -p "$pid" -m "$minor"
  check "nothing holds the volume" within 120 quietly lvchange -a n "$vg/$leaf"
  quietly lvchange -a y "$vg/$leaf"
  check "check finds nothing at the end" vhd-util check -n "/dev/$vg/$leaf"
  dd if="/dev/$vg/$leaf" bs=1M conv=sparse of="$OUT/lvm/disk.vhd" 2>/dev/null
  cp -r "$SCRATCH/lvm/tree" "$OUT/lvm/"
}

begin
snapshot
coalesce
end
