/** `tap-ctl resize` of running disks of every type that can be made larger. */
import assert from "node:assert/strict";
import { Errno } from "../../ffi/errno.ts";
import { fio } from "../support/fio.ts";
import { NbdClient, noise } from "../support/nbd_client.ts";
import { createVhd, type Disk, needsServed, withTapdisks } from "../support/served.ts";
import { binaryPath, runOk } from "../support/tools.ts";

const MIB = 1 << 20;
const { ignore, suffix } = needsServed("dist/td-util", "dist/cbt-util", "fio");

/** Size of the disk as a client that comes now sees it, and its end. */
async function endOf({ socket }: Disk, at: number): Promise<[number, Uint8Array]> {
  const { client, info } = await NbdClient.open(socket);
  const end = await client.read(at, MIB);
  await client.disconnect();
  return [info.sizeBytes, end];
}

function resizeArgs({ pid, minor }: Disk, size: string): string[] {
  return ["resize", "-p", `${pid}`, "-m", `${minor}`, "-s", size];
}

for (const type of ["qcow2", "vhd", "aio"]) {
  Deno.test({
    name: `tap-ctl resize makes a running ${type} larger, under load${suffix}`,
    ignore,
    fn: () =>
      withTapdisks(async (tapdisks, folder) => {
        const image = `${type}:${folder}/disk`;
        await runOk(binaryPath("td-util"), ["create", image, "64M"]);
        const disk = await tapdisks.serve(image);
        const { client } = await NbdClient.open(disk.socket);
        await client.write(63 * MIB, noise(MIB, 7));
        const load = ["rw=randwrite", "bs=4k", "iodepth=8", "size=32M", "verify=crc32c"];
        const running = fio(disk.uri, load);
        await tapdisks.tapCtlOk(...resizeArgs(disk, "96M"));
        await tapdisks.tapCtlOk(...resizeArgs(disk, "128Mi"));
        assert.equal(await running.then(() => "verified"), "verified");
        await client.disconnect();
        assert.deepEqual(await endOf(disk, 127 * MIB), [128 * MIB, new Uint8Array(MIB)]);
        assert.deepEqual(await endOf(disk, 63 * MIB), [128 * MIB, noise(MIB, 7)]);
        const smaller = await tapdisks.tapCtl(...resizeArgs(disk, "64M"));
        assert.equal(smaller.code, Errno.EINVAL);
        assert.match(smaller.stderr, /never made smaller/);
        assert.equal((await endOf(disk, 0))[0], 128 * MIB);
      }),
  });
}

Deno.test({
  name: `tap-ctl resize shows nothing of what is below a child that was made smaller${suffix}`,
  ignore,
  fn: () =>
    withTapdisks(async (tapdisks, folder) => {
      const [base, child] = [`vhd:${folder}/base.vhd`, `vhd:${folder}/child.vhd`];
      Deno.writeFileSync(`${folder}/base.raw`, noise(32 * MIB, 5));
      const tdUtil = (...args: string[]): Promise<string> => runOk(binaryPath("td-util"), args);
      await tdUtil("convert", "--quiet", `raw:${folder}/base.raw`, base);
      await tdUtil("snapshot", base, child);
      await tdUtil("resize", "--quiet", "--shrink", child, "16M");
      const disk = await tapdisks.serve(child);
      await tapdisks.tapCtlOk(...resizeArgs(disk, "32M"));
      assert.deepEqual(await endOf(disk, 16 * MIB), [32 * MIB, new Uint8Array(MIB)]);
      assert.deepEqual(await endOf(disk, 31 * MIB), [32 * MIB, new Uint8Array(MIB)]);
      const kept = noise(32 * MIB, 5).subarray(15 * MIB, 16 * MIB);
      assert.deepEqual(await endOf(disk, 15 * MIB), [32 * MIB, kept]);
    }),
});

Deno.test({
  name: `tap-ctl resize leaves a disk alone that it cannot make larger${suffix}`,
  ignore,
  fn: () =>
    withTapdisks(async (tapdisks, folder) => {
      const path = await createVhd(`${folder}/a.vhd`, 16);
      await runOk(binaryPath("cbt-util"), ["create", "-n", `${folder}/log`, "-s", `${16 * MIB}`]);
      const options = ["-C", `${folder}/log`];
      const noted = await tapdisks.serve(`vhd:${path}`, { options });
      const filtered = await tapdisks.serve(`log:vhd:${await createVhd(`${folder}/b.vhd`, 16)}`);
      const fixed = await tapdisks.serve("ram:16");
      const refusals: [Disk, number, RegExp][] = [
        [noted, Errno.EOPNOTSUPP, /changed blocks are noted in .*cbt-util/],
        [filtered, Errno.EINVAL, /Cannot resize .*log:vhd:/],
        [fixed, Errno.EINVAL, /Cannot resize .*ram:16/],
      ];
      for (const [disk, errno, why] of refusals) {
        const { code, stderr } = await tapdisks.tapCtl(...resizeArgs(disk, "32M"));
        assert.equal(code, errno, stderr);
        assert.match(stderr, why);
        assert.equal((await endOf(disk, 0))[0], 16 * MIB);
      }
      const paused = await tapdisks.serve(`vhd:${await createVhd(`${folder}/c.vhd`, 16)}`);
      const address = ["-p", `${paused.pid}`, "-m", `${paused.minor}`];
      await tapdisks.tapCtlOk("pause", ...address);
      const { code, stderr } = await tapdisks.tapCtl(...resizeArgs(paused, "32M"));
      assert.equal(code, Errno.EBUSY, stderr);
      assert.match(await tapdisks.tapCtlOk("list", "-p", `${paused.pid}`), /state=0x2a/);
      await tapdisks.tapCtlOk("unpause", ...address);
    }),
});
