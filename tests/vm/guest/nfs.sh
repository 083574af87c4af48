#!/bin/bash
# Images on NFS of the kernel's own server, which goes away under load: a VHD and a QCOW2 on a soft mount, a
# VHD on a hard mount. Then a VHD on mounts of version 3, whose locks hold on one host only, are refused, and hold;
# and one on a filesystem without O_DIRECT. Needs FACTS.

here=$(dirname "$0")
# shellcheck source=tests/vm/guest/facts.sh
. "$here/facts.sh"

folder=$SCRATCH/nfs
server=/srv/nfs
soft=/mnt/nfs_soft
hard=/mnt/nfs_hard
mount=/mnt/on_nfs
options=rw,sync,no_root_squash,no_subtree_check,insecure
export BLKTAP_LOG_DIR=$folder/log
mkdir -p "$server" "$soft" "$hard" "$mount" "$BLKTAP_LOG_DIR"
cd "$folder" || exit

# The server needs a filesystem that can be exported, and one more: what it answers when an export is
# missing differs for the root of all exports.
start_server() {
  modprobe -a loop nfs nfsv4 nfsd || return
  mkdir -p /var/lib/nfs/rpc_pipefs /var/lib/nfs/nfsdcld
  touch /var/lib/nfs/etab /var/lib/nfs/rmtab /etc/exports
  mount -t rpc_pipefs rpc_pipefs /var/lib/nfs/rpc_pipefs && mount -t nfsd nfsd /proc/fs/nfsd || return
  truncate -s 16M root.img && mkfs.ext4 -q root.img && mount -o loop root.img "$server" || return
  mkdir "$server/sr"
  truncate -s 600M sr.img && mkfs.ext4 -q sr.img && mount -o loop sr.img "$server/sr" || return
  printf '%s *(%s)\n' "$server" "$options,fsid=0" "$server/sr" "$options,fsid=7" >/etc/exports
  # It keeps the names of clients, so that they get their locks again after a restart.
  nfsdcld && exportfs -ra && rpc.mountd --no-nfs-version 3 || return
  echo 10 >/proc/fs/nfsd/nfsv4leasetime
  echo 10 >/proc/fs/nfsd/nfsv4gracetime
  start_nfsd
}

start_nfsd() {
  rpc.nfsd --no-nfs-version 3 2
}

# Usage: mount_nfs FOLDER OPTIONS
mount_nfs() {
  mount -t nfs -o "retry=0,vers=4.2,proto=tcp,timeo=10,retrans=1,nosharecache,$2" 127.0.0.1:/sr "$1"
}

# Usage: find_device IMAGE; sets pid and minor.
find_device() {
  [[ $(tap-ctl list -f "$1") =~ ^pid=([0-9]+)\ minor=([0-9]+)\  ]] || return
  pid=${BASH_REMATCH[1]} minor=${BASH_REMATCH[2]}
}

# Usage: load FILE; writes at random places with direct I/O, and reads back.
load() {
  fio --name=load --filename="$1" --size=1m --rw=randwrite --bs=4k --ioengine=libaio --iodepth=8 --direct=1 \
    --rate_iops=60 --verify=crc32c --verify_fatal=1 --aux-path="$folder"
}

# Usage: begin_loads; repeats the loads of all disks until end_loads, which fails if one has failed.
begin_loads() {
  rm -f stop load.*
  loaders=()
  local file
  for file in "$mount/load" "$qcow2_node" "$hard_node"; do
    while ! [ -e stop ]; do load "$file" || exit; done >"load.${#loaders[@]}" 2>&1 &
    loaders+=($!)
  done
  within 240 all_loaded
}

all_loaded() {
  local index
  for index in 0 1 2; do [ -s "load.$index" ] || return; done
}

end_loads() {
  touch stop
  local loader failed=0
  for loader in "${loaders[@]}"; do wait "$loader" || failed=1; done
  [ "$failed" -eq 0 ] || tail -n 20 load.*
  return "$failed"
}

# Usage: has_retries IMAGE; whether its statistics show more retries than 0.
has_retries() {
  find_device "$1" && tap-ctl stats -p "$pid" -m "$minor" | grep -E '"retries": *[1-9]'
}

# Usage: logged IMAGE TEXT; whether a tapdisk has logged it of the image.
logged() {
  grep -hF "$1" "$BLKTAP_LOG_DIR"/* | grep -F "$2"
}

# What was written to places that were not in the image before is in it.
new_blocks() {
  dd if=/dev/urandom of=noise bs=1M count=3 status=none
  dd if=noise of="$mount/$1" bs=1M conv=fsync status=none && cmp noise "$mount/$1"
}

make_disks() {
  check "a kernel server, NFS 4.2" start_server || exit
  check "it is mounted soft, with a time-out of 3 s" mount_nfs "$soft" soft || exit
  check "it is mounted hard" mount_nfs "$hard" hard || exit
  vhd-util create -n "$soft/disk.vhd" -s 96
  td-util create "qcow2:$soft/disk.qcow2" 64Mi
  vhd-util create -n "$hard/hard.vhd" -s 64
  node=$(tap-ctl create -a "vhd:$soft/disk.vhd" --device ublk)
  qcow2_node=$(tap-ctl create -a "qcow2:$soft/disk.qcow2" --device ublk)
  hard_node=$(tap-ctl create -a "vhd:$hard/hard.vhd" --device ublk)
  check "a VHD and a QCOW2 on the soft mount, a VHD on the hard one" \
    test -b "$node" -a -b "$qcow2_node" -a -b "$hard_node" || exit
  check "ext4 on the VHD" mkfs.ext4 -q -F "$node" && mount "$node" "$mount" || exit
}

outage() {
  check "verifying fio on ext4 on the VHD, on the QCOW2, and on the VHD of the hard mount" begin_loads
  rpc.nfsd 0
  # Requests of the soft mount have failed twice by then.
  sleep 8
  check "the server comes back after more than the soft time-out" start_nfsd
  sleep 4
  check "fio notices nothing" end_loads
  check "the statistics of the VHD show its retries" has_retries "$soft/disk.vhd"
  check "so do those of the QCOW2" has_retries "$soft/disk.qcow2"
}

# The server answers with ESTALE.
export_away() {
  begin_loads
  exportfs -u "*:$server/sr"
  exportfs -f
  sleep 3
  exportfs -ra
  exportfs -f
  sleep 3
  check "fio notices nothing of an export that is taken away and given again" end_loads
  check "blocks are added to the VHD after that" new_blocks after_export
}

# The server starts before the filesystem of its export is mounted: it forgets what is open and locked.
server_forgets() {
  begin_loads
  rpc.nfsd 0
  exportfs -ua
  umount "$server/sr"
  start_nfsd
  exportfs -o "$options,fsid=0" "*:$server"
  exportfs -f
  sleep 3
  mount -o loop sr.img "$server/sr"
  exportfs -ra
  exportfs -f
  sleep 4
  check "fio notices nothing of a server that forgets open files" end_loads
  check "the VHD was opened anew" logged "vhd:$soft/disk.vhd" "opened anew"
  check "so was the QCOW2" logged "qcow2:$soft/disk.qcow2" "opened anew"
  check "blocks are added to the VHD that was opened anew" new_blocks after_restart
  check "the image has its lock again: EBUSY" fails_with 16 vhd-util set -n "$soft/disk.vhd" -f hidden -v 1
}

replaced() {
  vhd-util create -n "$soft/victim.vhd" -s 16
  local victim
  victim=$(tap-ctl create -a "vhd:$soft/victim.vhd" --device nbd -t 4)
  dd if=/dev/urandom of="$victim" bs=64k count=1 oflag=direct status=none
  rpc.nfsd 0
  cp "$server/sr/victim.vhd" "$server/sr/copy.vhd"
  mv "$server/sr/copy.vhd" "$server/sr/victim.vhd"
  cp "$server/sr/victim.vhd" kept.vhd
  start_nfsd
  check "writes to an image that was replaced fail" \
    fails_with 1 dd if=/dev/urandom of="$victim" bs=64k count=1 oflag=direct status=none
  check "the log says why" logged "$soft/victim.vhd" "is another file now"
  find_device "$soft/victim.vhd"
  tap-ctl close -p "$pid" -m "$minor" --force
  tap-ctl detach -p "$pid" -m "$minor"
  tap-ctl free -m "$minor"
  check "the other file is untouched" cmp kept.vhd "$server/sr/victim.vhd"
}

end() {
  check "it unmounts" umount "$mount"
  check "fsck finds nothing" fsck.ext4 -fn "$node"
  local image
  for image in "$soft/disk.vhd" "$soft/disk.qcow2" "$hard/hard.vhd"; do
    find_device "$image"
    tap-ctl destroy -p "$pid" -m "$minor"
  done
  check "vhd-util finds no faults" vhd-util check -n "$soft/disk.vhd"
  check "nor in the image of the hard mount" vhd-util check -n "$hard/hard.vhd"
  check "td-util finds none in the QCOW2" td-util check "qcow2:$soft/disk.qcow2"
}

# Why the machine has no version 3; fails where it has.
lacks_version_3() {
  local tool
  for tool in rpcbind rpc.statd; do
    command -v "$tool" >/dev/null || { echo "needs $tool" && return; }
  done
  ! modprobe -n nfsv3 2>/dev/null && echo "needs nfsv3.ko"
}

# Usage: gone PID
gone() {
  ! kill -0 "$1" 2>/dev/null
}

# Version 3 has further daemons: rpcbind for all, and statd for locks.
start_server_3() {
  local mountd
  mountd=$(pidof rpc.mountd)
  umount "$soft" "$hard"
  rpc.nfsd 0
  # It would take the new one away from rpcbind's list.
  kill "$mountd" && within 10 gone "$mountd" || return
  modprobe -a nfsv3 lockd || return
  echo 10 >/proc/sys/fs/nfs/nlm_grace_period
  grep -q ^_rpc: /etc/passwd || echo '_rpc:x:199:65534::/run/rpcbind:/usr/sbin/nologin' >>/etc/passwd
  mkdir -p /run/rpcbind /var/lib/nfs/sm /var/lib/nfs/sm.bak
  rpcbind && rpc.statd --no-notify && rpc.mountd && rpc.nfsd 2
}

# Usage: mount_nfs_3 FOLDER OPTIONS
mount_nfs_3() {
  mkdir -p "$1"
  mount -t nfs -o "retry=0,vers=3,proto=tcp,nosharecache,$2" "127.0.0.1:$server/sr" "$1"
}

# The kernel finds its port as before, and nobody there. It asks for it at the first lock.
mount_without_statd() {
  mount_nfs_3 "$refused" lock && kill -9 "$(pidof rpc.statd)"
}

# Usage: serve IMAGE; sets node.
serve() {
  node=$(tap-ctl create -a "vhd:$1" --device ublk) && test -b "$node"
}

# Usage: unserve IMAGE
unserve() {
  find_device "$1" && tap-ctl destroy -p "$pid" -m "$minor"
}

# Usage: count_logged IMAGE TEXT
count_logged() {
  logged "$1" "$2" | wc -l
}

version_3() {
  local nolock=/mnt/nfs3_nolock refused=/mnt/nfs3_refused locked=/mnt/nfs3_locked
  local none="without a lock: the filesystem has no locks (ENOLCK)"
  check "version 3: a server" start_server_3 || return
  check "version 3: it is mounted with nolock" mount_nfs_3 "$nolock" nolock || return
  check "version 3: it is mounted with locks, and statd dies" mount_without_statd || return
  vhd-util create -n "$nolock/3.vhd" -s 16
  dd if=/dev/urandom of=noise bs=1M count=3 status=none

  check "nolock: a VHD is opened" serve "$nolock/3.vhd" || return
  check "nolock: one line of the log says that the lock is of this host only" \
    is 1 count_logged "$nolock/3.vhd" "with a lock of this host only"
  check "nolock: on this host it holds: EBUSY" fails_with 16 vhd-util set -n "$nolock/3.vhd" -f hidden -v 1
  check "nolock: verifying fio" load "$node"
  check "nolock: blocks are added" dd if=noise of="$node" bs=1M oflag=direct conv=fsync status=none
  check "nolock: the VHD is closed" unserve "$nolock/3.vhd" || return

  check "refused locks: the VHD is opened" serve "$refused/3.vhd" || return
  check "refused locks: one line of the log says that there is no lock" \
    is 1 count_logged "$refused/3.vhd" "$none"
  check "refused locks: it has what was written by the other mount" cmp -n 3145728 noise "$node"
  check "refused locks: verifying fio" load "$node"
  check "refused locks: the VHD is closed" unserve "$refused/3.vhd" || return

  check "locks of version 3: statd is there again, and the VHD is opened" serve_with_statd || return
  check "locks of version 3: the log has no further line" is 1 count_logged "$refused/3.vhd" "$none"
  check "locks of version 3: it is mounted once more" mount_nfs_3 "$locked" lock
  check "locks of version 3: the other mount does not get the lock: EBUSY" \
    fails_with 16 vhd-util set -n "$locked/3.vhd" -f hidden -v 1
  check "locks of version 3: the VHD is closed" unserve "$refused/3.vhd"
  check "version 3: vhd-util finds no faults" vhd-util check -n "$nolock/3.vhd"
  check "version 3: no VHD goes through the page cache" is 0 count_logged /3.vhd "the page cache"
}

serve_with_statd() {
  rpc.statd --no-notify && serve "$refused/3.vhd"
}

without_direct_io() {
  local folder=/mnt/ramfs
  mkdir "$folder" && mount -t ramfs ramfs "$folder"
  vhd-util create -n "$folder/cached.vhd" -s 16
  check "without O_DIRECT: a VHD is opened" serve "$folder/cached.vhd" || return
  check "without O_DIRECT: one line of the log says so" \
    is 1 count_logged "$folder/cached.vhd" "goes through the page cache: the filesystem refuses O_DIRECT (EINVAL)"
  check "without O_DIRECT: verifying fio" load "$node"
  check "without O_DIRECT: the VHD is closed" unserve "$folder/cached.vhd"
  check "without O_DIRECT: vhd-util finds no faults" vhd-util check -n "$folder/cached.vhd"
}

# Usage: skip_facts FUNCTION REASON; skips all facts of a function of this script.
skip_facts() {
  local name
  sed -n "/^$1()/,/^}/s/^ *check \"\([^\"]*\)\".*/\1/p" "$0" | while IFS= read -r name; do
    printf '%s\n' "$2" | fact skipped "$name"
  done
}

make_disks
outage
export_away
server_forgets
replaced
end
if why=$(lacks_version_3); then
  skip_facts version_3 "$why"
else
  version_3
fi
without_direct_io
