/** Samples of tapdisks that end, or hand a disk over, while they are asked. */
import assert from "node:assert/strict";
import { closeFile } from "../../ffi/files.ts";
import { unixListen } from "../../ffi/sockets.ts";
import { MESSAGE_BYTES } from "../../src/control/protocol/message.ts";
import { encodeStatisticsHead } from "../../src/control/protocol/statistics.ts";
import { Gatherer } from "../../src/observe/gather.ts";
import { LyingTapdisk } from "../search/fuzz/wire/lying_tapdisk.ts";
import { withTempDir } from "../support/tools.ts";

/** More than the kernel has: such a process is not alive. */
const NOBODY = 2 ** 22 + 1;
/** Long, as other tests run at the same time. */
const TIMEOUT_MS = 60_000;

function test(name: string, body: (folder: string) => Promise<void>): void {
  Deno.test(`samples: ${name}`, () =>
    withTempDir(async (folder) => {
      Deno.mkdirSync(`${folder}/tapdisk`);
      const before = Deno.env.get("BLKTAP_CONTROL_DIR");
      Deno.env.set("BLKTAP_CONTROL_DIR", folder);
      try {
        await body(folder);
      } finally {
        if (before === undefined) Deno.env.delete("BLKTAP_CONTROL_DIR");
        else Deno.env.set("BLKTAP_CONTROL_DIR", before);
      }
    }));
}

/** The socket of a tapdisk that is gone. */
function leaveSocket(path: string): void {
  closeFile(unixListen(path));
}

/** Calls `body`; before the first connection is made, `first` is called. */
async function withFirst<Result>(first: () => void, body: () => Promise<Result>): Promise<Result> {
  const { now } = performance;
  performance.now = () => {
    performance.now = now;
    first();
    return performance.now();
  };
  try {
    return await body();
  } finally {
    performance.now = now;
  }
}

test("a tapdisk is dead when its socket is still there", async (folder) => {
  const path = `${folder}/ctl${NOBODY}`;
  const gatherer = new Gatherer({ nowMs: () => 0 });
  leaveSocket(path);
  assert.deepEqual((await gatherer.gather()).dead, [NOBODY]);
  // It ends in order after the folder was read.
  const sample = await withFirst(() => Deno.removeSync(path), () => gatherer.gather());
  assert.deepEqual([sample.dead, sample.silent, sample.pids], [[], [], []]);
});

test("a disk that two tapdisks have, one after the other, is there once", async (folder) => {
  const tapdisks: LyingTapdisk[] = [];
  const tell = async (pid: number, ...disks: [minor: number, name: string][]): Promise<void> => {
    const tapdisk = await LyingTapdisk.start(`${folder}/ctl${pid}`);
    tapdisks.push(tapdisk);
    const all = disks.map(([minor, name]) => ({ minor, name, secs: [0, 0], images: [] }));
    const text = new TextEncoder().encode(JSON.stringify(all));
    const answer = Uint8Array.from([...encodeStatisticsHead(0, text.length), ...text]);
    tapdisk.tell([{ read: MESSAGE_BYTES, answer, times: 1, stays: false }]);
  };
  try {
    await tell(NOBODY, [4, "vhd:/a"], [2, "vhd:/b"], [3, "vhd:/c"]);
    await tell(NOBODY + 1, [2, "vhd:/b"], [3, ""]);
    const { disks } = await new Gatherer({ timeoutMs: TIMEOUT_MS }).gather();
    assert.deepEqual(disks.map(({ minor, pid, path }) => [minor, pid, path]), [
      [2, NOBODY + 1, "/b"],
      [3, NOBODY, "/c"],
      [4, NOBODY, "/a"],
    ]);
  } finally {
    for (const tapdisk of tapdisks) tapdisk.end();
  }
});
