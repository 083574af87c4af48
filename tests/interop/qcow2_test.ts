/** QCOW2 images that the built tapdisk serves, judged by qemu-img: fio, a kill, snapshots. */
import assert from "node:assert/strict";
import { fio } from "../support/fio.ts";
import { NbdClient, noise } from "../support/nbd_client.ts";
import { assertQemuClean, qemuCreate } from "../support/qcow2.ts";
import { createVhd, needsServed, withTapdisks } from "../support/served.ts";
import { runOk } from "../support/tools.ts";

const MIB = 1 << 20;
const SIZE_MIB = 32;
const { ignore, suffix } = needsServed("fio", "qemu-img");

/** Random writes of many sizes, verified behind them. */
const VERIFIED = [
  "rw=randwrite",
  "bssplit=512/20:4k/50:20k/20:300k/10",
  "iodepth=16",
  `size=${SIZE_MIB}M`,
  "io_size=8M",
  "verify=crc32c",
  "verify_fatal=1",
  "randrepeat=0",
];

const KINDS: readonly (readonly string[])[] = [
  [],
  ["cluster_size=4k", "refcount_bits=8"],
  ["extended_l2=on"],
  ["compat=0.10", "cluster_size=1M"],
];

for (const options of KINDS) {
  Deno.test({
    name: `fio verifies what it writes to a QCOW2 (${options.join(",")})${suffix}`,
    ignore,
    fn: () =>
      withTapdisks(async (tapdisks, folder) => {
        const path = `${folder}/a.qcow2`;
        await qemuCreate(path, SIZE_MIB * MIB, options);
        const disk = await tapdisks.serve(`qcow2:${path}`);
        await fio(disk.uri, VERIFIED);
        await tapdisks.stop(disk);
        await assertQemuClean(path);
      }),
  });
}

Deno.test({
  name:
    `a tapdisk killed under load leaves a QCOW2 without errors, and all that was answered${suffix}`,
  ignore,
  fn: () =>
    withTapdisks(async (tapdisks, folder) => {
      const path = `${folder}/a.qcow2`;
      await qemuCreate(path, SIZE_MIB * MIB, ["cluster_size=16k"]);
      const disk = await tapdisks.serve(`qcow2:${path}`);
      const { client } = await NbdClient.open(disk.socket);
      for (let i = 0; i < 8; i++) await client.write(24 * MIB + i * MIB, noise(20_480, i));
      const load = ["rw=randwrite", "bs=4k", "iodepth=8", "size=16M", "rate_iops=4000"];
      const running = fio(disk.uri, [...load, "time_based", "runtime=20"])
        .then(() => "ended", () => "failed");
      await new Promise((resolve) => setTimeout(resolve, 400));
      try {
        await tapdisks.kill(disk.pid);
      } finally {
        // A program that still runs at the end would hide the error.
        assert.equal(await running, "failed");
      }
      client.close();
      await assertQemuClean(path, true);
      await tapdisks.tapCtlOk("free", "-m", `${disk.minor}`);
      const again = await tapdisks.serve(`qcow2:${path}`);
      const served = await NbdClient.open(again.socket);
      for (let i = 0; i < 8; i++) {
        assert.deepEqual(await served.client.read(24 * MIB + i * MIB, 20_480), noise(20_480, i));
      }
      await served.client.disconnect();
    }),
});

Deno.test({
  name: `tap-ctl snapshot puts a QCOW2 on a VHD, and one on that${suffix}`,
  ignore,
  fn: () =>
    withTapdisks(async (tapdisks, folder) => {
      const disk = await tapdisks.serve(`vhd:${await createVhd(`${folder}/a.vhd`, SIZE_MIB)}`);
      const { client } = await NbdClient.open(disk.socket);
      const address = ["-p", `${disk.pid}`, "-m", `${disk.minor}`];
      const expected = new Uint8Array(3 * MIB);
      const write = async (at: number, seed: number): Promise<void> => {
        expected.set(noise(300_032, seed), at);
        await client.write(at, noise(300_032, seed));
      };
      await write(0, 1);
      await tapdisks.tapCtlOk("snapshot", ...address, "-n", `${folder}/b.qcow2`, "--type", "qcow2");
      await write(200_192, 2);
      await tapdisks.tapCtlOk("snapshot", ...address, "-n", `${folder}/c.qcow2`);
      await write(2 * MIB - 512, 3);
      await client.write(100_352, new Uint8Array(4096));
      expected.fill(0, 100_352, 104_448);
      assert.deepEqual(await client.read(0, expected.length), expected);
      await client.disconnect();
      await tapdisks.stop(disk);
      for (const name of ["b", "c"]) await assertQemuClean(`${folder}/${name}.qcow2`);
      // QEMU calls a VHD vpc.
      await runOk("qemu-img", ["convert", "-O", "raw", `${folder}/c.qcow2`, `${folder}/out.raw`]);
      const out = Deno.readFileSync(`${folder}/out.raw`);
      assert.deepEqual(out.subarray(0, expected.length), expected);
    }),
});
