/**
 * Runs one tapdisk under load for a long time: `deno task bench:load --disks 200 --seconds 300
 * --clients 20 [--folder DIR]`. The exit status is 1 when memory grew or a descriptor was left
 * open.
 *
 * @module
 */
import { parseArgs } from "node:util";
import { holdLoad, type LoadFigures } from "../support/load.ts";

/** Permitted variation of memory under load, KiB. */
const FLAT_KIB = 16 * 1024;

function report(figures: LoadFigures, seconds: number): void {
  const { operations, bytes, processorSeconds, memoryKib, descriptors } = figures;
  const mib = (kib: number) => `${(kib / 1024).toFixed(0)} MiB`;
  console.log(`${Math.round(operations / seconds)} operations/s, verified`);
  console.log(`${(bytes / seconds / 1e6).toFixed(0)} MB/s`);
  console.log(`${(processorSeconds / seconds * 100).toFixed(0)} % of a processor`);
  console.log(`${(processorSeconds / operations * 1e6).toFixed(1)} µs of it an operation`);
  const { one, all, early, end, emptied } = memoryKib;
  console.log(
    `private memory: one disk ${mib(one)}, all ${mib(all)}, early in the load ` +
      `${mib(early)}, at its end ${mib(end)}, all destroyed ${mib(emptied)}`,
  );
  console.log(
    `descriptors: one disk ${descriptors.one}, all ${descriptors.all}, ` +
      `all destroyed ${descriptors.emptied}`,
  );
}

async function main(): Promise<number> {
  const { values } = parseArgs({
    args: Deno.args,
    options: {
      disks: { type: "string", default: "200" },
      clients: { type: "string", default: "20" },
      seconds: { type: "string", default: "300" },
      folder: { type: "string" },
    },
  });
  const { folder } = values;
  const seconds = Number(values.seconds);
  const disks = Number(values.disks);
  const figures = await holdLoad({ disks, clients: Number(values.clients), seconds, folder });
  report(figures, seconds);
  const grewKib = figures.memoryKib.end - figures.memoryKib.early;
  if (grewKib > FLAT_KIB) console.error(`Memory grew by ${grewKib} KiB under load`);
  const left = figures.descriptors.emptied - figures.descriptors.one;
  if (left > 0) console.error(`${left} descriptors are left`);
  return grewKib > FLAT_KIB || left > 0 ? 1 : 0;
}

Deno.exit(await main());
