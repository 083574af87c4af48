import assert from "node:assert/strict";
import { Errno } from "../../ffi/errno.ts";
import { fio } from "../support/fio.ts";
import { mayMount } from "../support/mounts.ts";
import { Cmd, NbdClient, noise } from "../support/nbd_client.ts";
import {
  createVhd,
  type Disk,
  needsServed,
  type Tapdisks,
  vhdUtilOk,
  withTapdisks,
} from "../support/served.ts";
import { assertQemuClean, qemuCreate } from "../support/qcow2.ts";
import { run, runOk } from "../support/tools.ts";

const MIB = 1024 * 1024;
const DISK_MIB = 64;
const FULL_MIB = 24;

const { ignore, suffix } = needsServed("root", "fio", "qemu-img", "mount", "umount");
const refused = !ignore && !mayMount();

function fullDiskTest(
  name: string,
  fn: (tapdisks: Tapdisks, folder: string) => Promise<void>,
): void {
  Deno.test({
    name: `full disk: ${name}${suffix}${refused ? " (skipped: may not mount a tmpfs)" : ""}`,
    ignore: ignore || refused,
    fn: () =>
      withTapdisks(async (tapdisks, parent) => {
        const folder = `${parent}/small`;
        Deno.mkdirSync(folder);
        await runOk("mount", ["-t", "tmpfs", "-o", `size=${FULL_MIB}m`, "none", folder]);
        try {
          await fn(tapdisks, folder);
          await tapdisks.finish();
        } finally {
          tapdisks.abandon();
          await runOk("umount", ["-l", folder]);
        }
      }),
  });
}

interface Seen {
  readonly retries: number;
  readonly retrying: number;
}

async function statistics(tapdisks: Tapdisks, { pid, minor }: Disk): Promise<Seen> {
  return JSON.parse(await tapdisks.tapCtlOk("stats", "-p", `${pid}`, "-m", `${minor}`));
}

/** Waits until the disk retries requests. */
async function untilRetrying(tapdisks: Tapdisks, disk: Disk): Promise<Seen> {
  for (let left = 600; left > 0; left--) {
    const seen = await statistics(tapdisks, disk);
    if (seen.retrying > 0) return seen;
    await new Promise((resolve) => setTimeout(resolve, 100));
  }
  throw new Error("The disk never became full");
}

async function grow(folder: string): Promise<void> {
  await runOk("mount", ["-o", "remount,size=128m", folder]);
}

/** Images by type: what they are called, and how they are made and judged. */
const IMAGES: Readonly<
  Record<string, {
    what: string;
    make: (path: string) => Promise<unknown>;
    judge: (path: string) => Promise<unknown>;
  }>
> = {
  vhd: {
    what: "a dynamic VHD",
    make: (path) => createVhd(path, DISK_MIB),
    judge: (path) => vhdUtilOk("check", "-n", path),
  },
  aio: {
    what: "a raw image",
    make: (path) => runOk("truncate", ["-s", `${DISK_MIB}M`, path]),
    judge: () => Promise.resolve(),
  },
  // 512 clusters take another refcount block, and another L2 table.
  qcow2: {
    what: "a QCOW2",
    make: (path) => qemuCreate(path, DISK_MIB * MIB, ["cluster_size=4k", "refcount_bits=64"]),
    judge: (path) => assertQemuClean(path, true),
  },
};

for (const [type, { what, make, judge }] of Object.entries(IMAGES)) {
  fullDiskTest(
    `fio verifies ${what} on a filesystem that becomes full and is given room later`,
    async (tapdisks, folder) => {
      const path = `${folder}/a.${type}`;
      await make(path);
      const disk = await tapdisks.serve(`${type}:${path}`);
      const load = ["rw=randwrite", "bs=16k", "iodepth=16", `size=${DISK_MIB}M`, "fsync=32"];
      const running = fio(disk.uri, [...load, "verify=crc32c", "verify_fatal=1"]);
      const seen = await untilRetrying(tapdisks, disk);
      // Later the filesystem is still full, and no request has failed.
      while ((await statistics(tapdisks, disk)).retries <= seen.retries) {
        await new Promise((resolve) => setTimeout(resolve, 100));
      }
      await grow(folder);
      const [job] = await running;
      assert.equal(job.error, 0);
      assert.equal(job.write.io_bytes, DISK_MIB * MIB);
      assert.ok(job.read.io_bytes >= DISK_MIB * MIB, "all of it was read back");
      assert.equal((await statistics(tapdisks, disk)).retrying, 0);
      await tapdisks.stop(disk);
      await judge(path);
    },
  );
}

fullDiskTest(
  "a client is told when the time-out is over, and the disk goes on when there is room",
  async (tapdisks, folder) => {
    // More new blocks than the bitmap cache holds.
    const path = await createVhd(`${folder}/a.vhd`, 2048);
    const disk = await tapdisks.serve(`vhd:${path}`, { options: ["-t", "1"] });
    await run("dd", ["if=/dev/zero", `of=${folder}/filler`, "bs=1M"]);
    const { client } = await NbdClient.open(disk.socket);
    for (let first = 0; first < 800; first += 100) {
      for (let block = first; block < first + 100; block++) {
        const payload = noise(65536, block);
        await client.request({ command: Cmd.Write, offset: block * 2 * MIB, payload, flags: 0 });
      }
      for (let i = 0; i < 100; i++) {
        const { error } = await client.reply();
        assert.ok(error === Errno.ENOSPC || error === Errno.EIO, `error ${error}`);
      }
    }
    Deno.removeSync(`${folder}/filler`);
    for (const block of [0, 500, 799, 900]) {
      await client.write(block * 2 * MIB, noise(65536, block));
      assert.deepEqual(await client.read(block * 2 * MIB, 65536), noise(65536, block));
    }
    await client.disconnect();
    await tapdisks.stop(disk);
    await vhdUtilOk("check", "-n", path);
  },
);
