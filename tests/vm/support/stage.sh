# The second part of the machine's start. busybox's shell runs it in the initramfs, which has mounted the
# host's root on /host. The machine's root is that folder, then layers of further packages, then a layer
# in memory for all writes. The next steps are in the folder shared with the host.

give_up() {
  echo "vm: cannot $*"
  poweroff -f
}

share=trans=virtio,version=9p2000.L,msize=512000
mkdir -p /out /memory /new
mount -t 9p -o "$share,cache=mmap" out /out || give_up "mount the results"
mount -t tmpfs -o size=80% memory /memory || give_up "mount memory"
mkdir -p /memory/upper /memory/work

# Each layer is a separate share, because an overlay does not accept a folder of another layer.
lower=/host
for layer in $(cat /out/.vm/layers); do
  mkdir -p "/$layer"
  mount -t 9p -o "$share,ro,cache=loose" "$layer" "/$layer" || give_up "mount $layer"
  lower=/$layer:$lower
done
mount -t overlay -o "lowerdir=$lower,upperdir=/memory/upper,workdir=/memory/work" root /new ||
  give_up "make the root"

mkdir -p /new/vm/out /new/proc /new/sys /new/dev /new/run /new/tmp
mount --move /proc /new/proc
mount --move /sys /new/sys
mount --move /dev /new/dev
mount --move /out /new/vm/out
mkdir -p /new/dev/pts /new/dev/shm
mount -t devpts devpts /new/dev/pts
mount -t tmpfs shm /new/dev/shm
mount -t tmpfs run /new/run
mount -t tmpfs tmp /new/tmp
chmod 1777 /new/tmp /new/dev/shm
mkdir -p /new/run/lock
mount -t debugfs debugfs /new/sys/kernel/debug
mount -t cgroup2 cgroup2 /new/sys/fs/cgroup

# The new mounts hide folders of the host's /tmp that the script needs.
while read -r folder; do
  case $folder in
    /tmp/* | /run/* | /vm/*)
      mkdir -p "/new$folder"
      mount --bind "/host$folder" "/new$folder" || give_up "show $folder"
      ;;
  esac
done </new/vm/out/.vm/folders

# The root may lack a command that powers off.
cp /bin/busybox /new/vm/busybox
ifconfig lo 127.0.0.1 up
hostname vm
exec switch_root /new /bin/bash /vm/out/.vm/start
