#!/bin/busybox sh
# The first process of the paravirtual guest, in an initramfs with busybox. It prints the properties of its
# disks, compares and changes their contents, and powers the guest off. The kernel's command line has
# the names of the disks and the checksums of their contents before and after.

/bin/busybox --install -s /bin
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs dev /dev
insmod /xen-blkfront.ko

wanted() {
  for word in $(cat /proc/cmdline); do
    case $word in "guest.$1="*) echo "${word#*=}" | tr , ' ' ;; esac
  done
}

say() { echo "guest: $disk $*"; }

# Usage: compare WHEN; compares the checksum of the whole disk with that of the command line.
compare() {
  set -- "$1" "$(md5sum <"/dev/$disk" | cut -d ' ' -f 1)"
  if [ "$2" = "$(wanted "$1")" ]; then say "as it should be $1"; else say "wrong $1: $2"; fi
}

# Usage: copy FROM COUNT TO BLOCK_SIZE; copies within the disk, in blocks.
copy() {
  dd "if=/dev/$disk" "of=/dev/$disk" bs="$4" skip="$1" count="$2" seek="$3" conv=notrunc,fsync \
    2>/dev/null || say "cannot write"
}

for disk in $(wanted disks); do
  tries=0
  until [ -b "/dev/$disk" ] || [ "$tries" -eq 300 ]; do
    sleep 0.1
    tries=$((tries + 1))
  done
  cd "/sys/block/$disk" || continue
  say "has $(cat size) sectors of $(cat queue/logical_block_size), $(cat queue/write_cache)"
  compare before
  copy 256 768 4480 4096
  copy 17 1 50001 512
  sync
  echo 3 >/proc/sys/vm/drop_caches
  compare after
done
poweroff -f
