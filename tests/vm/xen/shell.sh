#!/bin/busybox sh
# The first process of a paravirtual guest, in an initramfs with busybox. It carries out commands that the first
# domain writes to its console: lines of a number and a command. Before and after what a command
# prints there is a line with the number.

/bin/busybox --install -s /bin
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs dev /dev
mount -t tmpfs tmp /tmp
stty -echo </dev/console

# Larger requests and rings than by default, as far as the other side offers them.
insmod /xen-blkfront.ko max_indirect_segments=256 max_ring_page_order=3

# Usage: disk NAME; waits for a disk, and prints its sectors, their size, and its kind of cache.
disk() {
  tries=0
  until [ -b "/dev/$1" ] || [ "$tries" -eq 600 ]; do
    sleep 0.1
    tries=$((tries + 1))
  done
  cd "/sys/block/$1" && echo "$(cat size) $(cat queue/logical_block_size) $(cat queue/write_cache)"
}

# Usage: sum NAME; prints the checksum of a disk, read past the cache.
sum() {
  dd "if=/dev/$1" bs=1M iflag=direct 2>/dev/null | md5sum | cut -d ' ' -f 1
}

# Usage: copy NAME FROM COUNT TO BLOCK_BYTES; copies blocks within a disk, past the cache.
copy() {
  dd "if=/dev/$1" "of=/dev/$1" bs="$5" skip="$2" count="$3" seek="$4" iflag=direct oflag=direct \
    conv=notrunc,fsync 2>/dev/null
}

# Usage: load NAME MIB; writes noise to that MiB of a disk and reads it back, again and again, until `unload`. The
# file pause has the time between.
load() {
  rounds=0
  while [ -e /tmp/loaded ]; do
    head -c 65536 /dev/urandom >/tmp/noise
    dd if=/tmp/noise "of=/dev/$1" bs=16k seek=$(($2 * 64)) oflag=direct conv=notrunc 2>/dev/null &&
      dd "if=/dev/$1" bs=16k skip=$(($2 * 64)) count=4 iflag=direct 2>/dev/null | cmp - /tmp/noise ||
      return
    rounds=$((rounds + 1))
    echo "$rounds" >/tmp/rounds
    read -r pause </tmp/pause
    sleep "$pause"
  done
  echo ok >/tmp/verdict
}

# Usage: begin_load NAME MIB SECONDS; with that much time between two rounds.
begin_load() {
  touch /tmp/loaded
  echo "$3" >/tmp/pause
  echo 0 >/tmp/rounds
  load "$1" "$2" >/tmp/verdict 2>&1 &
  loader=$!
}

# Usage: further; waits until the load has done two rounds more.
further() {
  wanted=$(($(cat /tmp/rounds) + 2))
  # The file is empty for a moment when it is written.
  until read -r now </tmp/rounds && [ "$now" -ge "$wanted" ]; do
    kill -0 "$loader" || return
    sleep 0.5
  done
}

# Usage: stand_still; whether the load does not go on, after the round that it may be at the end of.
stand_still() {
  sleep 3
  before=$(cat /tmp/rounds)
  sleep 3
  [ "$(cat /tmp/rounds)" = "$before" ]
}

# Usage: unload; ends the load, and prints ok when all was read back as it was written.
unload() {
  rm /tmp/loaded
  wait "$loader"
  cat /tmp/verdict
}

# Usage: make_tree NAME; makes an ext4 with some files on a disk.
make_tree() {
  for module in $(cat /ext4/modules); do insmod "/ext4/$module"; done
  /ext4/mkfs.ext4 -q -F "/dev/$1" && mkdir -p /tmp/tree && mount -t ext4 "/dev/$1" /tmp/tree &&
    cp -r /ext4 /tmp/tree/ && sync && diff -r /ext4 /tmp/tree/ext4 && umount /tmp/tree
}

echo "guest: ready"
while read -r number command; do
  echo "guest: $number begins"
  # In this shell, which has the load.
  eval "$command" </dev/null 2>&1
  echo "guest: $number ended with $?"
done </dev/console
