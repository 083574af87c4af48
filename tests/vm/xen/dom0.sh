#!/bin/bash
# Runs in the first domain of Xen. Starts Xen's services and a guest for each kind of block device.
#
#   dom0.sh KIND…
#
# Writes facts to $OUT/xen.facts, and for each kind to $OUT/KIND.facts. See disks.sh for its
# requirements.

here=$(dirname "$0")
export FACTS=$OUT/xen.facts
# shellcheck source=tests/vm/guest/facts.sh
. "$here/../guest/facts.sh"

export XEN_LOGS=/var/log/xen
PATH=/usr/lib/xen-4.17/bin:$PATH

start_xen() {
  modprobe -a xen-evtchn xen-gntdev xen-gntalloc xen-privcmd xenfs xen-blkback || return
  # Without /dev/stdin, Xen's scripts wait forever for a lock. On other systems udev creates it.
  ln -sfn /proc/self/fd /dev/fd
  ln -sfn fd/0 /dev/stdin
  mkdir -p /run/xen /run/xenstored /var/lib/xen /var/lib/xenstored "$XEN_LOGS/console"
  mount -t xenfs xenfs /proc/xen &&
    xenstored &&
    xen-init-dom0 &&
    xenconsoled --log=guest "--log-dir=$XEN_LOGS/console"
}

version() {
  xl info | sed -n 's/^xen_version *: \([0-9]*\.[0-9]*\).*/\1/p'
}

check "Xen's services start with Debian's kernel as the first domain" start_xen || exit
check "xl finds the hypervisor" is 4.17 version
modprobe -a nbd ublk_drv
for kind in "$@"; do
  FACTS=$OUT/$kind.facts bash "$here/disks.sh" "$kind"
done
tail -n 20 "$XEN_LOGS"/*.log
