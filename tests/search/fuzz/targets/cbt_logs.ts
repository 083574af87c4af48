/**
 * Hostile logs of changed blocks: any header, any length. Each is read, changed, merged, and opened
 * with a disk. A call ends with a `SystemError`, or with what makes sense for the size of the disk.
 *
 * @module
 */
import assert from "node:assert/strict";
import { Errno, SystemError } from "../../../../ffi/errno.ts";
import {
  bitmapBytes,
  CBT_BLOCK_BYTES,
  CBT_HEADER_BYTES,
  changedBytes,
  changedExtents,
} from "../../../../src/cbt/cbt_log.ts";
import {
  changeCbtLog,
  coalesceCbtLogs,
  createCbtLog,
  readCbtHeader,
  readCbtLog,
} from "../../../../src/cbt/log_file.ts";
import type { Random } from "../../../../src/testing/random.ts";
import type { SimulatedDisk } from "../../../../src/testing/simulated_disk.ts";
import { Simulation, stampedSectors } from "../../../support/sim.ts";
import { getFile, putFile } from "../../../support/vhd.ts";
import type { SearchContext } from "../../search.ts";
import type { Target } from "../target.ts";
import { anyBytes, hostileLong, mutated, pick } from "../wire/choose.ts";

const CASES_OF_BATCH = 60;
const DISK_BYTES = 4 << 20;
const LOG = "/hostile.cbtlog";
const GOOD = "/good.cbtlog";
const SIZES = [0, 1, 65536, DISK_BYTES, DISK_BYTES * 8, 2 ** 32, 2 ** 47];

function hostileLog(random: Random): Uint8Array<ArrayBuffer> {
  const size = hostileLong(random, SIZES);
  const fits = size <= BigInt(DISK_BYTES * 16) && random.chance(0.7);
  const log = anyBytes(
    random,
    CBT_HEADER_BYTES + (fits ? bitmapBytes(Number(size)) : random.below(80)),
  );
  new DataView(log.buffer).setBigUint64(40, size, true);
  if (random.chance(0.4)) log.fill(pick(random, [0, 0xff]), CBT_HEADER_BYTES);
  if (random.chance(0.2)) new DataView(log.buffer).setBigUint64(40, BigInt(DISK_BYTES), true);
  return random.chance(0.2) ? mutated(random, log) : log;
}

/** Returns what a call returns; null where it refuses with a `SystemError`. */
function refused<Result>(call: () => Result): Result | null {
  try {
    return call();
  } catch (error) {
    if (!(error instanceof SystemError) || error.errno <= 0) throw error;
    assert.ok(error.message.length > 0);
    return null;
  }
}

function checkRead(storage: SimulatedDisk): void {
  const header = refused(() => readCbtHeader(LOG, { storage }));
  const log = refused(() => readCbtLog(LOG, { storage }));
  if (log === null) return;
  assert.deepEqual(log.header, header);
  assert.equal(log.bits.length, bitmapBytes(log.header.sizeBytes));
  let end = -1;
  let sum = 0;
  for (const { offsetBytes, lengthBytes } of changedExtents(log)) {
    assert.ok(offsetBytes > end && lengthBytes > 0 && offsetBytes % CBT_BLOCK_BYTES === 0);
    end = offsetBytes + lengthBytes;
    sum += lengthBytes;
  }
  assert.ok(end <= log.header.sizeBytes);
  assert.equal(sum, changedBytes(log));
}

function checkChanges(storage: SimulatedDisk, random: Random): void {
  const before = getFile(storage, LOG);
  const parent = anyBytes(random, 16);
  const isChanged = refused(() => changeCbtLog(LOG, { storage, parent, consistent: 1 }));
  const after = getFile(storage, LOG);
  if (isChanged === null) assert.deepEqual(after, before);
  else {
    before.set(parent);
    before.set([1, 0, 0, 0], 32);
    assert.deepEqual(after, before);
  }
  const sizeBytes = DISK_BYTES * (1 + random.below(4));
  refused(() => changeCbtLog(LOG, { storage, sizeBytes }));
  const isMerged = refused(() => {
    coalesceCbtLogs({ storage, parent: LOG, child: GOOD });
    return true;
  });
  const good = readCbtLog(GOOD, { storage });
  assert.equal(good.header.sizeBytes, DISK_BYTES);
  if (isMerged === true) {
    const { bits } = readCbtLog(LOG, { storage });
    bits.forEach((byte, i) => assert.equal(byte & ~good.bits[i], 0));
  }
}

function checkOpen(simulation: Simulation): void {
  const { disk: storage } = simulation;
  const before = getFile(storage, LOG);
  const fits = refused(() => readCbtLog(LOG, { storage }))?.header.sizeBytes === DISK_BYTES;
  try {
    const device = simulation.open("ram:4", { changedBlocks: LOG });
    assert.ok(fits, "a log that does not fit is opened");
    device.write(130, stampedSectors(130, 4, 1));
    device.settle();
    device.close();
    before[CBT_HEADER_BYTES] |= 2;
    assert.deepEqual(getFile(storage, LOG), before);
  } catch (error) {
    if (!(error instanceof SystemError)) throw error;
    assert.equal(error.errno, Errno.EPERM);
    assert.ok(!fits, `a log that fits is refused: ${error.message}`);
    assert.deepEqual(getFile(storage, LOG), before);
  }
}

export const target: Target = {
  run(random: Random, context: SearchContext): number {
    const simulation = new Simulation({ seed: random.bits() });
    const { disk: storage } = simulation;
    createCbtLog(GOOD, { storage, sizeBytes: DISK_BYTES });
    for (let i = 0; i < CASES_OF_BATCH; i++) {
      const log = hostileLog(random);
      context.trace(`a log of ${log.length} bytes: ${log.subarray(0, CBT_HEADER_BYTES).toHex()}`);
      putFile(storage, LOG, log);
      checkRead(storage);
      checkOpen(simulation);
      checkChanges(storage, random);
    }
    simulation.close();
    return CASES_OF_BATCH;
  },
};
