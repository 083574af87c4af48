#!/bin/bash
# Scripts of this folder, side by side in one machine.
#
#   suite.sh NAME=SCRIPT [ARGUMENT…] -- NAME=SCRIPT …
#
# Each script writes its facts to $OUT/NAME.facts.

here=$(dirname "$0")
modprobe -a nbd ublk_drv dm-mod loop || exit

# LVM's tools read every block device; one that is paused, or whose image is on a volume, is not for them.
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
