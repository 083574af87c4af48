/** What it takes to open a QCOW2 of 16 TiB in the built tapdisk. */
import assert from "node:assert/strict";
import { fio } from "../support/fio.ts";
import { assertQemuClean, qemuCreate } from "../support/qcow2.ts";
import { cpuSeconds } from "../bench/processor_time.ts";
import { needsServed, privateMemoryKib, withTapdisks } from "../support/served.ts";

const TIB = 2 ** 40;
/** What a disk of 16 TiB may take over an empty tapdisk. */
const MOST_KIB = 32 * 1024;
/** What opening and closing it may take: processor time, as other work makes the machine slow. */
const MOST_SECONDS = 1;
const OPENS = 10;
const { ignore, suffix } = needsServed("fio", "qemu-img");

Deno.test({
  name: `a QCOW2 of 16 TiB is opened at once, with little memory${suffix}`,
  ignore,
  fn: () =>
    withTapdisks(async (tapdisks, folder) => {
      await qemuCreate(`${folder}/small`, TIB / 1024);
      await qemuCreate(`${folder}/large`, 16 * TIB);
      const pid = await tapdisks.spawn();
      // It stays, and the code that opens images is in memory then.
      await tapdisks.serve(`qcow2:${folder}/small`, { pid });
      const emptyKib = privateMemoryKib(pid);
      const before = cpuSeconds(pid);
      for (let i = 0; i < OPENS; i++) {
        await tapdisks.stop(await tapdisks.serve(`qcow2:${folder}/large`, { pid }));
      }
      const seconds = (cpuSeconds(pid) - before) / OPENS;
      const disk = await tapdisks.serve(`qcow2:${folder}/large`, { pid });
      const openKib = privateMemoryKib(pid) - emptyKib;
      assert.ok(openKib < MOST_KIB, `${openKib} KiB more for a disk of 16 TiB`);
      assert.ok(seconds < MOST_SECONDS, `${seconds} s to open and close a disk of 16 TiB`);
      // Each write makes a table somewhere else.
      const size = `size=${16 * TIB}`;
      await fio(disk.uri, ["rw=randwrite", "bs=4k", "norandommap", size, "io_size=1M"]);
      await tapdisks.stop(disk);
      await assertQemuClean(`${folder}/large`);
    }),
});
