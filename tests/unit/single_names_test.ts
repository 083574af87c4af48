/**
 * The names of sockets while a tapdisk hands its disks over, and after that.
 *
 * @module
 */
import assert from "node:assert/strict";
import { closeFile, O_RDONLY, openFile, tryLockExclusive } from "../../ffi/files.ts";
import { inventory } from "../../src/control/client/inventory.ts";
import { diskOfMinor } from "../../src/control/minors/parent_disk.ts";
import { encodeListEntry } from "../../src/control/protocol/list.ts";
import { MESSAGE_BYTES } from "../../src/control/protocol/message.ts";
import { singleNames } from "../../src/control/single_names.ts";
import { LyingTapdisk } from "../search/fuzz/wire/lying_tapdisk.ts";
import { withTempDir } from "../support/tools.ts";

/** A process that does nothing. */
function sleeper(): Deno.ChildProcess {
  return new Deno.Command("sleep", { args: ["60"], stdin: "null" }).spawn();
}

async function end(child: Deno.ChildProcess): Promise<void> {
  child.kill("SIGKILL");
  await child.status;
}

async function withControlFolder(body: (folder: string) => Promise<void>): Promise<void> {
  await withTempDir(async (folder) => {
    Deno.mkdirSync(`${folder}/tapdisk`);
    const before = Deno.env.get("BLKTAP_CONTROL_DIR");
    Deno.env.set("BLKTAP_CONTROL_DIR", folder);
    try {
      await body(folder);
    } finally {
      if (before === undefined) Deno.env.delete("BLKTAP_CONTROL_DIR");
      else Deno.env.set("BLKTAP_CONTROL_DIR", before);
    }
  });
}

Deno.test("of two names of a socket, that of the older process counts as long as it lives", () =>
  withControlFolder(async (folder) => {
    const old = sleeper();
    // The start of a process is known to 10 ms.
    await new Promise((resolve) => setTimeout(resolve, 50));
    const next = sleeper();
    Deno.writeTextFileSync(`${folder}/ctl${old.pid}`, "");
    Deno.linkSync(`${folder}/ctl${old.pid}`, `${folder}/ctl${next.pid}`);
    Deno.writeTextFileSync(`${folder}/ctl1`, "");
    Deno.symlinkSync("ctl1", `${folder}/ctl2`);
    const counted = (pids: number[]): number[] =>
      singleNames(pids.map((pid) => ({ name: `ctl${pid}`, pid }))).map(({ pid }) => pid);
    assert.deepEqual(counted([1, 2]), [1]);
    // The disks were handed over since the names were read.
    assert.deepEqual(counted([2]), [1]);
    Deno.symlinkSync("ctl4", `${folder}/ctl3`);
    Deno.symlinkSync("ctl3", `${folder}/ctl4`);
    assert.deepEqual(counted([3, 5]), []);
    assert.deepEqual(counted([old.pid, next.pid]), [old.pid]);
    assert.deepEqual(counted([next.pid, old.pid, 1]), [old.pid, 1]);
    await end(old);
    assert.deepEqual(counted([old.pid, next.pid]), [next.pid]);
    await end(next);
  }));

Deno.test("a disk that is handed over just now is listed once, and found by its minor", () =>
  withControlFolder(async (folder) => {
    const next = sleeper();
    const tapdisk = await LyingTapdisk.start(`${folder}/ctl${Deno.pid}`);
    const answer = Uint8Array.from([
      ...encodeListEntry(0, { count: 1, minor: 3, state: 0, path: "vhd:/x" }),
      ...encodeListEntry(0, { count: 0, minor: -1, state: 0, path: "" }),
    ]);
    const twice = { read: MESSAGE_BYTES, answer, times: 1, stays: false };
    tapdisk.tell([twice, twice]);
    Deno.linkSync(`${folder}/ctl${Deno.pid}`, `${folder}/ctl${next.pid}`);
    Deno.writeTextFileSync(`${folder}/nbd${Deno.pid}.4`, "");
    assert.deepEqual(inventory().map(({ pid, minor }) => [pid, minor]), [[Deno.pid, 3]]);
    Deno.linkSync(`${folder}/nbd${Deno.pid}.4`, `${folder}/nbd${next.pid}.4`);
    // Another process has the number of one whose disks were handed over.
    Deno.symlinkSync(`nbd${Deno.pid}.4`, `${folder}/nbd1.4`);
    assert.equal(diskOfMinor(4), `nbd:${folder}/nbd${Deno.pid}.4`);
    tapdisk.end();
    await end(next);
  }));

Deno.test("a minor whose lock is noted for a number that another process has is found", () =>
  withControlFolder(async (folder) => {
    // The lock is that of this process, which has no control socket: all tapdisks are asked.
    const path = `${folder}/tapdisk/tapdisk-3`;
    Deno.writeTextFileSync(path, "");
    const lock = openFile(path, O_RDONLY);
    assert.ok(tryLockExclusive(lock));
    const other = sleeper();
    const tapdisk = await LyingTapdisk.start(`${folder}/ctl${other.pid}`);
    const answer = Uint8Array.from([
      ...encodeListEntry(0, { count: 1, minor: 3, state: 0, path: "" }),
      ...encodeListEntry(0, { count: 0, minor: -1, state: 0, path: "" }),
    ]);
    tapdisk.tell([{ read: MESSAGE_BYTES, answer, times: 1, stays: false }]);
    assert.deepEqual(inventory({ minor: 3 }).map(({ pid }) => pid), [other.pid]);
    tapdisk.end();
    closeFile(lock);
    await end(other);
  }));
