#!/bin/sh
# Installs blktap with its libraries. Run it in the folder of the unpacked package.
#
#   ./install.sh                install commands, units and manual pages; files are in /usr/lib/blktap
#   ./install.sh --root DIR     the same, to a folder that will be the root of a machine
#   ./install.sh --prefix DIR   install only the commands, in DIR/bin; needs only write access to DIR
set -eu
LC_ALL=C
export LC_ALL

# Offset and size of the loader's path in the program. Linux needs an absolute path.
field_offset=@FIELD_OFFSET@
field_size=@FIELD_SIZE@

here=$(cd "$(dirname "$0")" && pwd)
home=usr/lib/blktap
root=
prefix=

die() {
  printf 'install.sh: %s\n' "$*" >&2
  exit 1
}

while [ $# -gt 0 ]; do
  case $1 in
    --root | --prefix)
      [ -n "${2:-}" ] || die "Cannot install: $1 needs a folder"
      mkdir -p "$2"
      if [ "$1" = --root ]; then root=$(cd "$2" && pwd); else prefix=$(cd "$2" && pwd); fi
      shift 2
      ;;
    *)
      sed -n '2,/^set/s/^# \{0,1\}//p' "$0"
      exit 0
      ;;
  esac
done
[ -z "$root" ] || [ -z "$prefix" ] || die "Cannot install: give --root or --prefix, not both"

# Usage: put FROM TO; replaces TO by a rename, so that a running program keeps its file.
put() {
  mkdir -p "$(dirname "$2")"
  rm -f "$2.new"
  cp -P "$1" "$2.new"
  mv -f "$2.new" "$2"
}

# Usage: put_all FOLDER TARGET
put_all() {
  (cd "$1" && find . ! -type d) | while IFS= read -r file; do
    put "$1/$file" "$2/${file#./}"
  done
}

if [ -n "$prefix" ]; then
  loader=$prefix/lib/ld-linux-x86-64.so.2
  [ "${#loader}" -lt "$field_size" ] || die "Cannot install into $prefix: its name is too long"
  put_all "$here/root/$home" "$prefix"
  put_all "$here/root/usr/share" "$prefix/share"
  cp "$prefix/bin/blktap" "$prefix/bin/blktap.new"
  {
    printf %s "$loader"
    head -c "$((field_size - ${#loader}))" /dev/zero
  } | dd of="$prefix/bin/blktap.new" bs=1 seek="$field_offset" conv=notrunc 2>/dev/null
  mv -f "$prefix/bin/blktap.new" "$prefix/bin/blktap"
  printf 'blktap is in %s/bin\n' "$prefix"
  exit 0
fi

(cd "$here/root" && find . ! -type d) | while IFS= read -r file; do
  file=${file#./}
  case $file in
    etc/*) [ ! -e "$root/$file" ] || continue ;;
  esac
  put "$here/root/$file" "$root/$file"
done
[ -z "$root" ] || exit 0

if [ -d /run/systemd/system ]; then
  systemctl daemon-reload
fi
if [ -e /run/udev/control ]; then
  udevadm control --reload || true
fi
printf '%s\n' 'blktap is installed. List disks in /etc/blktap/devices, then:' \
  '  systemctl enable --now blktap'
