#!/bin/bash
# A machine that serves disks from boot on. As the first process, this script configures the package, lists
# the disks, and becomes systemd, which runs `boot.sh check` after the boot.
#
#   $OUT/control      the scripts of the package, whose files are in a layer of the root
#   $OUT/devices      becomes /etc/blktap/devices
#   $OUT/fstab        the fstab of the disks' filesystems
#   $OUT/enabled      the package's configuration after the first boot, for the second
set -eu
OUT=/vm/out

# Units that take time and do not affect this test.
unwanted="systemd-hwdb-update.service systemd-update-utmp.service systemd-random-seed.service
  systemd-logind.service systemd-journal-catalog-update.service systemd-user-sessions.service
  ldconfig.service systemd-sysusers.service systemd-update-done.service systemd-pstore.service
  systemd-machine-id-commit.service modprobe@.service lvm2-monitor.service blk-availability.service
  console-getty.service serial-getty@ttyS0.service getty.target timers.target dbus.service
  dbus.socket dev-hugepages.mount dev-mqueue.mount sys-kernel-debug.mount sys-kernel-tracing.mount
  sys-fs-fuse-connections.mount sys-kernel-config.mount lvm2-lvmpolld.socket dm-event.socket
  systemd-binfmt.service proc-sys-fs-binfmt_misc.automount systemd-udev-trigger.service
  systemd-ask-password-console.path systemd-ask-password-wall.path"

become_systemd() {
  local unit folder enabled=/etc/systemd/system/multi-user.target.wants
  # Removes the units of the host, and the mark of a container.
  rm -rf /etc/systemd/system/*.wants /etc/systemd/system/*.service /.dockerenv
  for unit in $unwanted; do
    ln -sf /dev/null "/etc/systemd/system/$unit"
  done
  cp "$OUT/fstab" /etc/fstab
  while read -r _ folder _; do
    mkdir -p "$folder"
  done </etc/fstab
  cp "$OUT/devices" /etc/blktap/devices

  if [ ! -d "$OUT/enabled" ]; then
    DPKG_MAINTSCRIPT_PACKAGE=blktap "$OUT/control/postinst" configure ""
    cp -r "$enabled" "$OUT/enabled"
  fi
  cp -r "$OUT/enabled" "$enabled"
  # The same link as in Debian.
  ln -s /lib/systemd/system/remote-fs.target "$enabled/"
  mkdir -p /etc/systemd/system/blktap.service.d
  printf '[Service]\nStandardOutput=journal+console\nStandardError=journal+console\n' \
    >/etc/systemd/system/blktap.service.d/console.conf
  cat >/etc/systemd/system/check.service <<END
[Unit]
After=multi-user.target remote-fs.target
[Service]
Type=oneshot
ExecStart=/bin/bash $0 check
StandardOutput=journal+console
StandardError=journal+console
END
  cat >/etc/systemd/system/check.target <<END
[Unit]
Requires=multi-user.target
Wants=check.service
END
  umount /sys/fs/cgroup 2>/dev/null || true
  exec env -i PATH=/usr/sbin:/usr/bin:/sbin:/bin /usr/lib/systemd/systemd \
    --unit=check.target --show-status=0
}

# Usage: holds WHAT COMMAND…; runs the command and ends the checks when it fails.
holds() {
  if "${@:2}"; then
    echo "ok: $1"
  else
    echo "failed: $1"
    exit 1
  fi
}

is() {
  [ "$1" = "$2" ] || {
    echo "'$1' is not '$2'"
    return 1
  }
}

# Usage: has_name NAME NODE-PREFIX; whether udev has the name and the filesystem is mounted from it.
has_name() {
  local node
  node=$(readlink -f "/dev/blktap/$1")
  case $node in "$2"*) ;; *) is "$node" "$2" ;; esac &&
    udevadm info --query=symlink "$node" | grep -qw "blktap/$1" &&
    is "$(findmnt -no SOURCE "/srv/$1")" "$node"
}

# Usage: tapdisk_of NAME; prints the process number of its tapdisk.
tapdisk_of() {
  sed 's/.*"pid":\([0-9]*\).*/\1/' "/run/blktap-control/names/$1"
}

# Usage: is_confined PID; whether the process has the restrictions of the unit.
is_confined() {
  grep -q '^NoNewPrivs:[[:space:]]*1$' "/proc/$1/status" &&
    grep -q '^Seccomp:[[:space:]]*2$' "/proc/$1/status" &&
    ! nsenter --target "$1" --mount touch /usr/confined /etc/confined 2>/dev/null
}

# Usage: heeds_a_stranger NAME; whether an unmounted disk stays while another user's process has it open.
heeds_a_stranger() {
  local stranger status=0
  umount "/srv/$1"
  setpriv --reuid=65534 --regid=65534 --clear-groups --inh-caps=-all sleep 600 \
    <"/dev/blktap/$1" >/dev/null 2>&1 &
  stranger=$!
  sleep 1
  if tap-ctl restore --stop "$1"; then status=1; fi
  kill "$stranger"
  wait "$stranger" || true
  mount "/srv/$1"
  return "$status"
}

# Usage: lose_a_tapdisk; kills a tapdisk in the first boot, with files on both disks.
lose_a_tapdisk() {
  local disk first second
  for disk in first second; do
    cp -r /usr/lib/udev "/srv/$disk/tree"
  done
  (cd /srv && find . -type f -exec sha256sum {} + >"$OUT/sums")
  first=$(tapdisk_of first)
  second=$(tapdisk_of second)
  kill -KILL "$first"
  systemctl reload blktap
  holds "another tapdisk has the disk whose tapdisk was killed" \
    test "$(tapdisk_of first)" != "$first" -a -d "/proc/$(tapdisk_of first)"
  holds "the other disk is left alone" is "$(tapdisk_of second)" "$second"
}

check_disks() {
  local disk
  holds "the unit is up, whatever a line may lack" is "$(systemctl is-active blktap)" active
  holds "the first disk is mounted by its name" has_name first /dev/ublkb
  holds "the second disk is mounted by its name" has_name second /dev/nbd
  for disk in first second; do
    holds "the tapdisk of the $disk disk is confined" is_confined "$(tapdisk_of "$disk")"
    holds "a stranger keeps the $disk disk" heeds_a_stranger "$disk"
  done
  [ -e "$OUT/sums" ] || lose_a_tapdisk
  sync
  echo 3 >/proc/sys/vm/drop_caches
  cd /srv
  holds "the files are what was written" sha256sum --check --quiet --strict "$OUT/sums"
}

check() {
  local status=0
  (check_disks) || status=$?
  if [ "$status" -ne 0 ]; then
    systemctl --no-pager --lines=0 status blktap 'srv-*.mount' 'dev-blktap-*.device' || true
    journalctl --no-pager -b -p info -n 80 || true
  fi
  echo "$status" >"$OUT/.vm/exit"
  sync
  systemctl poweroff --no-block
}

if [ "${1:-}" = check ]; then check; else become_systemd; fi
