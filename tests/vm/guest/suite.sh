#!/bin/bash
# Runs scripts of this folder in parallel in one machine.
#
#   suite.sh NAME=SCRIPT [ARGUMENT…] -- NAME=SCRIPT …
#
# Each script writes its facts to $OUT/NAME.facts.

here=$(dirname "$0")
modprobe -a nbd ublk_drv dm-mod loop || exit

# LVM's tools read every block device. They must not read a paused one, or one whose image is on a volume.
cat >/etc/lvm/lvmlocal.conf <<'END'
devices { global_filter = [ "r|^/dev/ublkb|", "r|^/dev/nbd|" ] }
END

# Usage: begin NAME=SCRIPT [ARGUMENT…]
begin() {
  export FACTS=$OUT/${1%%=*}.facts
  : >"$FACTS"
  bash "$here/${1#*=}" "${@:2}" &
}

words=()
for word in "$@" --; do
  if [ "$word" = -- ]; then
    begin "${words[@]}"
    words=()
  else
    words+=("$word")
  fi
done
wait
