#!/bin/bash
# Runs in the first domain of Xen. Starts Xen's services, then scripts of this folder one after the other, with
# their names.
#
#   dom0.sh VERSION NAME=SCRIPT…
#
# $OUT must have slow_clock.so, and what the scripts say. Writes facts to $OUT/xen.facts, and those of each
# script to $OUT/NAME.facts.

here=$(dirname "$0")
export FACTS=$OUT/xen.facts
# shellcheck source=tests/vm/guest/facts.sh
. "$here/../guest/facts.sh"

export XEN_LOGS=/var/log/xen
PATH=/usr/lib/xen-$1/bin:$PATH

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

# xl waits for its scripts with limits that fit a real machine. The scripts of this folder call this function.
xl() {
  LD_PRELOAD=$OUT/slow_clock.so command xl "$@"
}
export -f xl

version() {
  xl info | sed -n 's/^xen_version *: \([0-9]*\.[0-9]*\).*/\1/p'
}

check "Xen's services start with Debian's kernel as the first domain" start_xen || exit
check "xl finds the hypervisor" is "$1" version
modprobe -a nbd ublk_drv
for each in "${@:2}"; do
  FACTS=$OUT/${each%%=*}.facts bash "$here/${each#*=}" "${each%%=*}"
done
tail -n 20 "$XEN_LOGS"/*.log
