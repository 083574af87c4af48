import assert from "node:assert/strict";
import { AioContext, IOCB_CMD_PREAD, IOCB_CMD_PREADV } from "../../ffi/aio.ts";
import { AssertionError } from "../../ffi/assert.ts";
import { Arena, copySectors, isMemory, zeroSectors } from "../../ffi/memory.ts";
import { DiskQueue } from "../../src/queue/disk_queue.ts";
import { SimulatedDisk } from "../../src/testing/simulated_disk.ts";
import { SimulatedScheduler } from "../../src/testing/simulated_scheduler.ts";

/** The first sector after all I/O memory in use. */
function firstBeyond(arena: Arena): number {
  let end = arena.sector + arena.sizeBytes / 512;
  while (isMemory(end, 1)) end += 8;
  return end;
}

Deno.test("no copy, zeroing or operation reaches beyond I/O memory", () => {
  const scheduler = new SimulatedScheduler();
  const disk = new SimulatedDisk().connect(scheduler);
  const queue = new DiskQueue(scheduler, disk, 16);
  const context = new AioContext(4, 4);
  const arena = new Arena(8 * 512);
  const beyond = firstBeyond(arena);
  const owner = { ioDone(): void {} };
  const { sector } = arena;
  copySectors(sector, sector + 4, 4);
  zeroSectors(sector, 8);
  const bad: (() => void)[] = [
    () => copySectors(beyond - 1, sector, 2),
    () => copySectors(sector, beyond - 1, 2),
    () => copySectors(-1, sector, 1),
    () => copySectors(sector, sector, -1),
    () => zeroSectors(beyond - 3, 4),
    () => zeroSectors(-8, 4),
    () => zeroSectors(sector, -4),
    () => queue.read(3, 0, 8, beyond - 7, owner, 0),
    () => queue.write(3, 0, 8, -1, owner, 0),
    () => queue.write(3, 0, 0, sector, owner, 0),
    () => queue.read(3, -1, 1, sector, owner, 0),
    () => context.prepare(IOCB_CMD_PREAD, 3, beyond - 1, 1024, new Float64Array(4), -1, 0),
    () => context.prepare(IOCB_CMD_PREADV, 3, beyond - 1, 33, new Float64Array(4), -1, 0),
  ];
  for (const call of bad) assert.throws(call, AssertionError, String(call));
  context.prepare(IOCB_CMD_PREADV, 3, beyond - 1, 32, new Float64Array(4), -1, 0);
  for (let i = 1; i < 4; i++) {
    context.prepare(IOCB_CMD_PREAD, 3, sector, 512, new Float64Array(4), -1, i);
  }
  const tooMany = (): void =>
    context.prepare(IOCB_CMD_PREAD, 3, sector, 512, new Float64Array(4), -1, 0);
  assert.throws(tooMany, AssertionError);
  context.clear();
  context.close();
  queue.close();
});

Deno.test("memory is released once: what comes twice would be given to two disks", () => {
  const arena = new Arena(4096);
  arena.release();
  assert.throws(() => arena.release(), AssertionError);
  const [first, second] = [new Arena(4096), new Arena(4096)];
  assert.notEqual(first.sector, second.sector);
  for (const each of [first, second]) each.release();
});
