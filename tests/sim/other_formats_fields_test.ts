/**
 * Images of QCOW, QCOW2 and VHDX in which one number is wrong: each field of the header, each extension,
 * each kind of table entry, in turn, at the limits at which sizes and offsets go wrong; and files that are
 * cut at each structure. `tests/search/fuzz/formats` says what is required of each.
 *
 * @module
 */
import {
  allWorlds,
  describeCase,
  type FormatCase,
  FormatStage,
} from "../search/fuzz/formats/format_case.ts";
import { type Field, valueOf, type World } from "../search/fuzz/formats/world.ts";

const worlds = allWorlds();
const stage = new FormatStage(worlds);

/** Numbers for a field: what it is and a little more or less, limits of its width, sizes. */
function valuesFor({ bytes }: World, field: Field): bigint[] {
  const known = valueOf(bytes, field);
  const top = 1n << BigInt(8 * field.width - 1);
  const values = [0n, 1n, known + 1n, known - 1n, known ^ top, top, 2n * top - 1n];
  if (field.width >= 4) values.push(512n, known + 512n, BigInt(bytes.length), 1n << 31n);
  if (field.width === 8) values.push(1n << 53n, known ^ (1n << 62n), BigInt(bytes.length) | top);
  return [...new Set(values.map((value) => BigInt.asUintN(8 * field.width, value)))]
    .filter((value) => value !== known);
}

function* casesOf(world: World): Generator<FormatCase> {
  let seed = 1;
  const rest = { world, isSealed: true, cutTo: null };
  for (const field of world.fields) {
    for (const value of valuesFor(world, field)) {
      yield { ...rest, edits: [{ field, value }], seed: seed += 7 };
    }
    if (world.sealed.length === 0) continue;
    const value = valueOf(world.bytes, field) ^ 1n;
    yield { ...rest, edits: [{ field, value }], isSealed: false, seed: seed += 7 };
  }
  for (const cut of world.cuts) {
    for (const cutTo of [cut - 1, cut, cut + 1]) {
      if (cutTo < 0 || cutTo > world.bytes.length) continue;
      yield { ...rest, edits: [], cutTo, seed: seed += 7 };
    }
  }
}

for (const world of worlds) {
  Deno.test(`each number is wrong once, and the file is cut at each structure: ${world.name}`, () => {
    const { stackTraceLimit } = Error;
    // Most cases end in an error that is expected.
    Error.stackTraceLimit = 0;
    try {
      for (const each of casesOf(world)) {
        try {
          stage.run(each);
        } catch (error) {
          throw new Error(`Something is found: ${describeCase(each)}`, { cause: error });
        }
      }
    } finally {
      Error.stackTraceLimit = stackTraceLimit;
    }
  });
}
