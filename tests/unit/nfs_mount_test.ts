/** What the options of a mount of NFS say of locks and of files that are opened. */
import assert from "node:assert/strict";
import { deviceNumbers, nfsMountOf } from "../../src/files/nfs_mount.ts";

/** A line of /proc/self/mountinfo. */
function line(numbers: string, filesystem: string): string {
  return `90 28 ${numbers} / /run/sr-mount rw,relatime shared:9 - ${filesystem}`;
}

const SHARE = "10.0.0.1:/sr\\040of\\040disks";
const MOUNTS = [
  "28 1 8:1 / / rw,relatime shared:1 - ext4 /dev/sda1 rw",
  line("0:40", "tmpfs nocto rw,nolock,nocto,local_lock=all"),
  line(
    "0:51",
    `nfs ${SHARE} rw,vers=3,hard,nolock,proto=tcp,mountproto=tcp,local_lock=all,addr=10.0.0.1`,
  ),
  line("0:52", `nfs ${SHARE} rw,vers=3,soft,nocto,proto=tcp,local_lock=none,addr=10.0.0.1`),
  line("0:53", `nfs4 ${SHARE} rw,vers=4.2,hard,nocto,proto=tcp,local_lock=none,addr=10.0.0.1`),
  line("0:54", `nfs ${SHARE} rw,vers=3,proto=tcp,local_lock=flock,addr=10.0.0.1`),
  line("0:551", `nfs ${SHARE} rw,vers=3,proto=tcp,local_lock=posix,addr=10.0.0.1`),
  "",
].join("\n");

function options(minor: number): string | undefined {
  const mount = nfsMountOf((minor & 0xff) | ((minor & 0xf_ff00) << 12), () => MOUNTS);
  if (mount === null) return undefined;
  const { isLockedHere, isOpenedUnasked } = mount;
  return [isLockedHere ? "locked here" : "", isOpenedUnasked ? "unasked" : ""].join("|");
}

Deno.test("locks are local with nolock, and with local_lock of all locks or of flock(2)", () => {
  assert.equal(options(51), "locked here|");
  assert.equal(options(54), "locked here|");
  assert.equal(options(551), "|", "only locks of bytes are local");
});

Deno.test("a file is opened without asking with nocto, but not of version 4", () => {
  assert.equal(options(52), "|unasked");
  assert.equal(options(53), "|");
});

Deno.test("what is no NFS has no such options", () => {
  assert.equal(options(40), undefined);
  assert.equal(options(55), undefined);
  const unread = (): string => assert.fail("a filesystem on a block device is not looked up");
  assert.equal(nfsMountOf(0x801, unread), null);
  assert.equal(nfsMountOf(51, () => ""), null);
  assert.deepEqual(deviceNumbers(0x801), [8, 1]);
  assert.deepEqual(deviceNumbers(0x1234_5678), [0x456, 0x1_2378]);
});
