/**
 * Hostile images of QCOW, QCOW2 and VHDX: fields and table entries with numbers at which sizes and
 * offsets go wrong, with the right checksums or not, files that are cut. Each is checked, read, and
 * written or mended through a disk.
 *
 * - A call ends with a `SystemError` that says what failed. No request hangs, and operations are bounded.
 * - What is opened for reading is not changed, and no file outside of the image's folder is opened.
 * - An image in which the check finds no fault opens, reads as its tables say, takes writes and keeps
 *   them, and is without a fault afterwards. One with faults still opens afterwards.
 * - A repair that ends well leaves no fault.
 *
 * @module
 */
import type { Random } from "../../../../src/testing/random.ts";
import type { SearchContext } from "../../search.ts";
import {
  allWorlds,
  describeCase,
  type Edit,
  type FormatCase,
  FormatStage,
} from "../formats/format_case.ts";
import { DISK_BYTES, valueOf, type World } from "../formats/world.ts";
import type { Target } from "../target.ts";
import { hostileLong, hostileWord, pick } from "../wire/choose.ts";

const CASES_OF_BATCH = 200;

/** A number for a field: near what it is, near sizes and limits, or any. */
function drawEdit(random: Random, { fields, bytes }: World): Edit {
  const field = pick(random, fields);
  const limits = [0, 512, 4096, 65536, 1 << 20, bytes.length, DISK_BYTES];
  const value = valueOf(bytes, field);
  const dice = random.below(20);
  if (dice < 4) return { field, value: value + BigInt(random.below(5) - 2) };
  if (dice < 6) return { field, value: value ^ (1n << BigInt(random.below(8 * field.width))) };
  // The number of another field: two entries then lead to one place.
  if (dice < 9) return { field, value: valueOf(bytes, pick(random, fields)) };
  if (field.width <= 4) return { field, value: BigInt(hostileWord(random, limits)) };
  const flags = random.chance(0.3) ? 1n << 63n : 0n;
  return { field, value: hostileLong(random, limits) | flags };
}

function drawCase(random: Random, worlds: readonly World[]): FormatCase {
  const world = pick(random, worlds);
  const isCut = random.chance(0.1);
  const count = isCut ? random.below(2) : 1 + random.below(3);
  const near = pick(random, world.cuts) + random.below(3) - 1;
  const cutTo = random.chance(0.5) ? near : random.below(world.bytes.length);
  return {
    world,
    edits: Array.from({ length: count }, () => drawEdit(random, world)),
    isSealed: random.chance(0.85),
    cutTo: isCut ? Math.max(0, Math.min(world.bytes.length, cutTo)) : null,
    seed: random.bits(),
  };
}

let stage: FormatStage | null = null;

export const target: Target = {
  run(random: Random, context: SearchContext): number {
    stage ??= new FormatStage(allWorlds());
    const { stackTraceLimit } = Error;
    // Most cases end in an error that is expected.
    Error.stackTraceLimit = 0;
    for (let i = 0; i < CASES_OF_BATCH; i++) {
      const drawn = drawCase(random, stage.worlds);
      context.trace(`${i}: ${describeCase(drawn)}`);
      try {
        context.count(`other-formats: ${stage.run(drawn)}`);
      } catch (error) {
        Error.stackTraceLimit = stackTraceLimit;
        stage = null;
        throw new Error(`Case ${i} finds something: ${describeCase(drawn)}`, { cause: error });
      }
    }
    Error.stackTraceLimit = stackTraceLimit;
    return CASES_OF_BATCH;
  },
};
