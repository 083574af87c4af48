/**
 * Served disks for tests of the NBD protocol.
 *
 * @module
 */
import assert from "node:assert/strict";
import { createVhd, type Disk, needsServed, type Tapdisks, withTapdisks } from "./served.ts";

const MIB = 1024 * 1024;
const DISK_MIB = 64;

export const DISK_BYTES = DISK_MIB * MIB;
/** Flags of a writable export: HAS_FLAGS, FLUSH, FUA, TRIM, WRITE_ZEROES, CAN_MULTI_CONN. */
export const FLAGS = 1 | 4 | 8 | 32 | 64 | 256;
/** The same with structured replies: also DF. */
export const STRUCTURED_FLAGS = FLAGS | 128;

const { ignore, suffix } = needsServed();

/** A test with two served disks: an empty dynamic VHD and an empty raw disk, created on demand. */
export function nbdTest(
  name: string,
  body: (
    disks: { vhd: Disk; raw: () => Promise<Disk>; tapdisks: Tapdisks; folder: string },
  ) => Promise<void>,
): void {
  Deno.test({
    name: `NBD: ${name}${suffix}`,
    ignore,
    fn: () =>
      withTapdisks(async (tapdisks, folder) => {
        const vhd = await tapdisks.serve(`vhd:${await createVhd(`${folder}/a.vhd`, DISK_MIB)}`);
        const raw = async (): Promise<Disk> => {
          Deno.writeFileSync(`${folder}/a.raw`, new Uint8Array(0));
          Deno.truncateSync(`${folder}/a.raw`, DISK_BYTES);
          return await tapdisks.serve(`aio:${folder}/a.raw`, { pid: vhd.pid });
        };
        await body({ vhd, raw, tapdisks, folder });
      }),
  });
}

/** Fails at the first difference without printing all bytes. */
export function assertBytes(actual: Uint8Array, expected: Uint8Array): void {
  assert.equal(actual.length, expected.length);
  const at = actual.findIndex((byte, i) => byte !== expected[i]);
  assert.equal(at, -1, `byte ${at} is ${actual[at]} instead of ${expected[at]}`);
}
