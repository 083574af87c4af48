#!/bin/bash
# TLS in the kernel: what it encrypts and decrypts of disks that are served over TCP.
#
#   tls.sh DENO
#
# Needs FACTS. OpenSSL 3.0 gives the kernel all keys of TLS 1.2, and of TLS 1.3 only the key to send with.

deno=$1
here=$(dirname "$0")
# shellcheck source=tests/vm/guest/facts.sh
. "$here/facts.sh"

MIB=$((1024 * 1024))
folder=$SCRATCH/tls
export BLKTAP_LOG_DIR=$folder/log
mkdir -p "$BLKTAP_LOG_DIR"
cd "$folder" || exit

# Usage: certificate NAME ALTNAMES; signs a certificate for a new key.
certificate() {
  printf 'subjectAltName=%s\n' "$2" >x
  openssl req -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -subj "/CN=$1" \
    -keyout "$1-key.pem" -out r &&
    openssl x509 -req -in r -CA ca-cert.pem -CAkey ca-key.pem -CAcreateserial -days 2 -extfile x \
      -out "$1-cert.pem"
}

make_certificates() {
  openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2 -subj /CN=ca \
    -keyout ca-key.pem -out ca-cert.pem &&
    certificate server DNS:localhost,IP:127.0.0.1 && certificate client DNS:client
}

# Usage: connections tx|rx; prints how many connections have had their keys in the kernel for this way.
connections() {
  awk -v way="Tls${1^}" '$1 == way "Sw" || $1 == way "Device" { sum += $2 } END { print sum + 0 }' \
    /proc/net/tls_stat
}

# Usage: more tx|rx BEFORE; whether there were more since.
more() {
  local now
  now=$(connections "$1")
  [ "$now" -gt "$2" ] || {
    echo "$now connections, $2 before"
    cat /proc/net/tls_stat
    return 1
  }
}

# Usage: serve; serves the file on a port; sets pid, minor and uri.
serve() {
  local where
  tap-ctl create -a "aio:$folder/disk" --device none >/dev/null || return
  [[ $(tap-ctl list -f "$folder/disk") =~ ^pid=([0-9]+)\ minor=([0-9]+)\  ]] || return
  pid=${BASH_REMATCH[1]} minor=${BASH_REMATCH[2]}
  where=$(tap-ctl serve -p "$pid" -m "$minor" --listen 127.0.0.1:0 --tls-certificates "$folder") ||
    return
  uri="nbds://localhost:${where##*:}/?tls-certificates=$folder"
}

destroy() {
  tap-ctl destroy -p "$pid" -m "$minor"
}

# Usage: reads_back; whether nbdcopy writes and reads the content over TLS.
reads_back() {
  nbdcopy content "$uri" && nbdcopy "$uri" copy && cmp content copy && cmp content disk
}

# Usage: load; writes and reads at random places of the near tapdisk, and verifies.
load() {
  fio --name=load --ioengine=nbd --size=4m --rw=randrw --bsrange=512-128k --iodepth=16 \
    --uri="nbd+unix:///?socket=$(control_folder)/nbd$near" --verify=crc32c --verify_fatal=1 --aux-path="$folder"
}

# Usage: load_on; the same again and again, until the file "stop" is there.
load_on() {
  until [ -e stop ]; do load || return; done
}

# Usage: verified [LOAD]; whether fio verifies what it writes to a near tapdisk, which is a client of the served one.
verified() {
  local near at status=0
  at=$(env -u OPENSSL_CONF tap-ctl create -a "nbds:${uri#nbds:}" --device none) || return
  [[ $(tap-ctl list -t nbds) =~ ^pid=([0-9]+)\ minor=([0-9]+)\  ]] || return
  near=${BASH_REMATCH[1]}.${BASH_REMATCH[2]}
  "${1:-load}" || status=$?
  tap-ctl destroy -p "${near%.*}" -m "${near#*.}" || return
  echo "$at"
  return "$status"
}

# Usage: over_upgrades; whether fio verifies over upgrades of the tapdisk that is served, whose client is another.
over_upgrades() {
  local loader count=0
  rm -f stop
  verified load_on >over.log 2>&1 &
  loader=$!
  while [ "$count" -lt 2 ] && within 240 busy && within 300 upgraded; do count=$((count + 1)); done
  touch stop
  wait "$loader" || {
    tail -n 30 over.log
    return 1
  }
  grep -h "users waited" "$BLKTAP_LOG_DIR/tapdisk.log" >"$OUT/tls_upgrade.times"
  is 2 echo "$count"
}

upgraded() {
  local now
  now=$(tap-ctl upgrade -p "$pid") && pid=$now
}

# Usage: busy; whether the served disk is read or written.
busy() {
  local before
  before=$(moved) && sleep 0.5 && [ "$(moved)" != "$before" ]
}

# Usage: moved; prints the sectors that were read and written.
moved() {
  tap-ctl stats -p "$pid" -m "$minor" | grep -o '"secs": [^]]*' | head -n 1
}

records() {
  "$deno" run -A --quiet --no-check "$here/tls_records.ts" "$folder"
}

control_folder() {
  echo "${BLKTAP_CONTROL_DIR:-/run/blktap-control}"
}

# Both ends of the process and its children then stay with TLS 1.2.
use_older_tls() {
  printf 'openssl_conf=c\n[c]\nssl_conf=s\n[s]\nsystem_default=d\n[d]\nMaxProtocol=TLSv1.2\n' >openssl.cnf
  export OPENSSL_CONF=$folder/openssl.cnf
}

for tool in openssl nbdcopy fio; do
  command -v "$tool" >/dev/null || {
    skip "the kernel encrypts what tapdisk sends" "needs $tool"
    exit
  }
done
check "the kernel has TLS" modprobe tls || exit 1
check "certificates" make_certificates || exit 1
head -c $((8 * MIB)) /dev/urandom >content
truncate -s $((8 * MIB)) disk

sent=$(connections tx)
check "a disk is served with TLS" serve || exit 1
check "nbdcopy writes and reads with TLS 1.3" reads_back
check "the kernel encrypts what tapdisk sends" more tx "$sent"
check "fio verifies through two tapdisks with TLS 1.3" verified
check "the disk is closed" destroy

use_older_tls
received=$(connections rx)
check "another is served with TLS 1.2" serve || exit 1
check "nbdcopy writes and reads with TLS 1.2" reads_back
check "the kernel decrypts what tapdisk receives" more rx "$received"
check "fio verifies through two tapdisks with TLS 1.2" verified
check "a new tapdisk takes such clients over, twice, while fio verifies" over_upgrades
check "data and other records go on without OpenSSL" records
check "the second disk is closed" destroy
