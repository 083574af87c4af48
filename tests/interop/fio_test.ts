import assert from "node:assert/strict";
import { uringMissing } from "../../ffi/uring_probe.ts";
import { fio } from "../support/fio.ts";
import {
  createVhd,
  needsServed,
  snapshotVhd,
  type Tapdisks,
  vhdUtilOk,
  withTapdisks,
} from "../support/served.ts";
import { binaryPath, runOk } from "../support/tools.ts";

const MIB = 1024 * 1024;
const DISK_MIB = 64;

const { ignore, suffix } = needsServed("fio", "qemu-img");

/** Random writes with many in flight, then a verification of all of them. */
const RANDOM_WRITES = [
  "rw=randwrite",
  "bs=4k",
  "iodepth=32",
  `size=${DISK_MIB}M`,
  "io_size=24M",
  "verify=crc32c",
  "verify_backlog=2000",
  "verify_fatal=1",
  "randrepeat=0",
];
const SIZES = "bssplit=512/10:4k/40:12k/20:64k/20:300k/8:2m/2";

const uring = uringMissing();
/** The disk queues, and the reason why one cannot be used here. */
const QUEUES: readonly [string, string | null][] = [["libaio", null], ["io_uring", uring]];

function fioTest(
  name: string,
  body: (tapdisks: Tapdisks, folder: string) => Promise<void>,
): void {
  for (const [queue, missing] of QUEUES) {
    const reason = missing === null ? suffix : ` (skipped: ${missing})`;
    Deno.test({
      name: `fio on ${queue}: ${name}${reason}`,
      ignore: ignore || missing !== null,
      fn: () => withTapdisks(body, { queue }),
    });
  }
}

/** Creates a chain of images that ends at `path`; fio writes different data to each. */
async function makeChain(folder: string, depth: number): Promise<string> {
  let path = await createVhd(`${folder}/0.vhd`, DISK_MIB);
  for (let layer = 1; layer < depth; layer++) {
    await withTapdisks(async (tapdisks) => {
      const { uri } = await tapdisks.serve(`vhd:${path}`);
      await fio(uri, [...RANDOM_WRITES.slice(0, 4), "io_size=8M", "do_verify=0", "randrepeat=0"]);
    });
    path = await snapshotVhd(`${folder}/${layer}.vhd`, path);
  }
  return path;
}

/** Checks that a chain is valid and has the contents of its export. */
async function assertInOrder(path: string, content: string): Promise<void> {
  await vhdUtilOk("check", "-n", path, "-p");
  const read = `${content}.vhd-util`;
  const script = `'${binaryPath("vhd-util")}' read -n '${path}' -r 0 -c ${
    DISK_MIB * 2048
  } >'${read}'`;
  await runOk("/bin/sh", ["-c", script]);
  await runOk("qemu-img", ["compare", "-f", "raw", "-F", "raw", read, content]);
  Deno.removeSync(read);
}

fioTest(
  "random writes 32 deep are there, on a raw disk",
  async (tapdisks, folder) => {
    const path = `${folder}/a.raw`;
    Deno.writeFileSync(path, new Uint8Array(0));
    Deno.truncateSync(path, DISK_MIB * MIB);
    const disk = await tapdisks.serve(`aio:${path}`);
    const [job] = await fio(disk.uri, RANDOM_WRITES);
    assert.equal(job.error, 0);
    assert.equal(job.write.io_bytes, 24 * MIB);
    assert.ok(job.read.io_bytes >= 20 * MIB, "it was read back");
    const compare = ["compare", "-f", "raw", "-F", "raw"];
    await runOk("qemu-img", [...compare, disk.uri, path]);
  },
);

fioTest(
  "random writes 32 deep are there, on a dynamic VHD",
  async (tapdisks, folder) => {
    const path = await createVhd(`${folder}/a.vhd`, DISK_MIB);
    const disk = await tapdisks.serve(`vhd:${path}`);
    const [job] = await fio(disk.uri, RANDOM_WRITES);
    assert.equal(job.error, 0);
    assert.equal(job.write.io_bytes, 24 * MIB);
    await runOk("qemu-img", ["convert", "-f", "raw", "-O", "raw", disk.uri, `${folder}/content`]);
    await tapdisks.stop(disk);
    await assertInOrder(path, `${folder}/content`);
    const vpc = `driver=vpc,force_size_calc=current_size,file.filename=${path}`;
    const content = `driver=raw,file.filename=${folder}/content`;
    await runOk("qemu-img", ["compare", "--image-opts", vpc, content]);
  },
);

fioTest(
  "random writes 32 deep are there, on a chain of three",
  async (tapdisks, folder) => {
    const path = await makeChain(folder, 3);
    const parents = [`${folder}/0.vhd`, `${folder}/1.vhd`];
    const before = parents.map((parent) => Deno.statSync(parent).mtime);
    const disk = await tapdisks.serve(`vhd:${path}`);
    const [job] = await fio(disk.uri, RANDOM_WRITES);
    assert.equal(job.error, 0);
    await runOk("qemu-img", ["convert", "-f", "raw", "-O", "raw", disk.uri, `${folder}/content`]);
    await tapdisks.stop(disk);
    await assertInOrder(path, `${folder}/content`);
    assert.deepEqual(parents.map((parent) => Deno.statSync(parent).mtime), before);
  },
);

fioTest(
  "requests of all sizes from 512 bytes to 2 MiB are there, on a chain of two",
  async (tapdisks, folder) => {
    const path = await makeChain(folder, 2);
    const disk = await tapdisks.serve(`vhd:${path}`);
    const options = RANDOM_WRITES.filter((option) => !option.startsWith("bs="));
    // The verification uses blocks of one size, so every size must be a multiple of it.
    const [job] = await fio(disk.uri, [...options, SIZES, "verify_interval=512"]);
    assert.equal(job.error, 0);
    await runOk("qemu-img", ["convert", "-f", "raw", "-O", "raw", disk.uri, `${folder}/content`]);
    await tapdisks.stop(disk);
    await assertInOrder(path, `${folder}/content`);
  },
);

fioTest(
  "several jobs on one export verify their own parts, with flushes and trims between",
  async (tapdisks, folder) => {
    const path = await createVhd(`${folder}/a.vhd`, DISK_MIB);
    const disk = await tapdisks.serve(`vhd:${path}`);
    const verified = ["bs=8k", "iodepth=16", "io_size=6M", "verify=crc32c", "verify_fatal=1"];
    const part = (index: number) => [`offset=${index * 16}M`, "size=16M"];
    const jobs = await fio(disk.uri, ["randrepeat=0"], {
      jobs: [
        ["name=writer", "rw=randwrite", "fsync=16", ...verified, ...part(0)],
        ["name=sequential", "rw=write", ...verified, ...part(1)],
        ["name=trimmer", "rw=randtrimwrite", "bs=64k", "iodepth=8", "io_size=8M", ...part(2)],
        ["name=reader", "rw=randread", "bs=4k", "iodepth=32", "io_size=16M", "size=100%"],
      ],
    });
    assert.deepEqual(jobs.map(({ jobname, error }) => [jobname, error]), [
      ["writer", 0],
      ["sequential", 0],
      ["trimmer", 0],
      ["reader", 0],
    ]);
    assert.ok(jobs[2].trim.total_ios > 0);
    await tapdisks.stop(disk);
    await vhdUtilOk("check", "-n", path);
  },
);
