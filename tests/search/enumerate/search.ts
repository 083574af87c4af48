/**
 * `deno task enumerate`: a seed is an operation of the tables; seeds beyond the last one run the same
 * operations with other random choices. `--only TEXT` takes operations whose names contain the text.
 *
 * @module
 */
import type { Search } from "../search.ts";
import { enumerate } from "./enumerate.ts";
import { OFFLINE } from "./operations/offline.ts";
import { OFFLINE_QCOW2 } from "./operations/offline_qcow2.ts";
import { SERVED } from "./operations/served.ts";

/** All operations. */
export const OPERATIONS = [...SERVED, ...OFFLINE, ...OFFLINE_QCOW2];

/** The enumeration. */
export const enumeration: Search = {
  unit: "operations",
  secondsPerSeed: 120,
  residentBytes: 2 ** 30,
  async run(seed, context): Promise<number> {
    const { only } = context;
    const operations = OPERATIONS.filter(({ name }) => only === null || name.includes(only));
    if (operations.length === 0) throw new TypeError(`No operation is called ${only}`);
    const operation = operations[(seed - 1) % operations.length];
    context.trace(operation.name);
    try {
      await enumerate(operation, { seed, counts: context });
      return 1;
    } catch (error) {
      throw new Error(`Enumeration of "${operation.name}"`, { cause: error });
    }
  },
};
