/** Monitoring programs read how many requests there are, from files of a tapdisk. */
import assert from "node:assert/strict";
import { fio } from "../support/fio.ts";
import { readStats, type Vbd3Stats } from "../support/metrics.ts";
import { NbdClient, noise } from "../support/nbd_client.ts";
import { createVhd, needsServed, waitUntil, withTapdisks } from "../support/served.ts";

const MIB = 1024 * 1024;
const { ignore, suffix } = needsServed();
const withFio = needsServed("fio");

/** The folder of a tapdisk: `kthread-pid` in the xenstore is the number of its process. */
function folderOf(pid: number): string {
  return `/dev/shm/td3-${pid}`;
}

function exists(path: string): boolean {
  try {
    Deno.lstatSync(path);
    return true;
  } catch {
    return false;
  }
}

Deno.test({
  name: `counters of a disk and of its clients are what clients did, and go with the disk${suffix}`,
  ignore,
  fn: () =>
    withTapdisks(async (tapdisks, folder) => {
      const path = await createVhd(`${folder}/a.vhd`, 64);
      const pid = await tapdisks.spawn();
      const kept = await tapdisks.serve("ram:8", { pid });
      const disk = await tapdisks.serve(`vhd:${path}`, { pid });
      const files = ["vdi", "nbd"].map((of) => `${folderOf(pid)}/${of}-${disk.minor}`);
      const { client } = await NbdClient.open(disk.socket);
      for (let i = 0; i < 5; i++) await client.write(i * MIB, noise(64 * 1024, i));
      for (let i = 0; i < 3; i++) await client.read(i * MIB, 64 * 1024);
      await client.flush();
      const address = ["-p", `${pid}`, "-m", `${disk.minor}`];
      await tapdisks.tapCtlOk("pause", ...address);
      await tapdisks.tapCtlOk("unpause", ...address);
      await client.read(0, 512);
      for (const file of files) {
        const seen = readStats(file);
        assert.deepEqual(
          [seen.oo_reqs, seen.io_errors, seen.flags, seen.read_sectors, seen.write_sectors],
          [0, 0, 0, 3 * 128 + 1, 5 * 128],
        );
        assert.deepEqual(
          [seen.read_reqs_submitted, seen.read_reqs_completed],
          [4, 4],
        );
        assert.deepEqual([seen.write_reqs_submitted, seen.write_reqs_completed], [5, 5]);
        assert.ok(seen.read_total_ticks > 0 && seen.write_total_ticks > 0);
      }
      assert.equal(readStats(`${folderOf(pid)}/vdi-${kept.minor}`).read_reqs_submitted, 0);
      await client.disconnect();
      await tapdisks.stop(disk);
      for (const file of files) assert.ok(!exists(file), file);
      await tapdisks.stop(kept);
      await waitUntil(() => !exists(folderOf(pid)), "the folder goes with its tapdisk");
    }),
});

Deno.test({
  name:
    `counters run under fio, and a killed tapdisk's are removed by the next one${withFio.suffix}`,
  ignore: withFio.ignore,
  fn: () =>
    withTapdisks(async (tapdisks) => {
      const disk = await tapdisks.serve("ram:64");
      const file = `${folderOf(disk.pid)}/vdi-${disk.minor}`;
      const jobs = ["rw=randrw", "bs=4k", "iodepth=32", "size=64M", "time_based", "runtime=20"];
      const running = fio(disk.uri, jobs).then(() => "ended", () => "failed");
      const counted = ({ read_reqs_completed, write_reqs_completed }: Vbd3Stats): number =>
        read_reqs_completed + write_reqs_completed;
      await waitUntil(() => counted(readStats(file)) > 1000, "fio has done 1000 requests");
      const before = readStats(file);
      await waitUntil(() => counted(readStats(file)) > counted(before) + 1000, "it goes on");
      const { read_reqs_completed: reads, read_sectors } = readStats(file);
      assert.ok(read_sectors >= 8 * reads && before.oo_reqs <= 128);
      await tapdisks.kill(disk.pid);
      assert.equal(await running, "failed");
      // Any tapdisk that starts on this machine removes them, also that of another test.
      const next = await tapdisks.spawn();
      assert.ok(!exists(folderOf(disk.pid)));
      assert.ok(exists(folderOf(next)));
      Deno.kill(next, "SIGTERM");
      await waitUntil(() => !exists(folderOf(next)), "the folder goes with its tapdisk");
    }),
});
