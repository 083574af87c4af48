/**
 * Reads the disk of a photograph through the code that serves it, in a process of its own.
 *
 * @module
 */
import { SimulatedScheduler } from "../../../src/testing/simulated_scheduler.ts";
import type { SimulatedDisk } from "../../../src/testing/simulated_disk.ts";
import { RequestKind } from "../../../src/vbd/slots.ts";
import { Vbd } from "../../../src/vbd/vbd.ts";
import { createVbdContext } from "../../../src/vbd/vbd_context.ts";
import { checkedDrivers } from "../../support/checked_drivers.ts";
import { diskKey } from "./formats/keys.ts";
import { formatNamed } from "./formats/registry.ts";
import type { ImageModel } from "./model.ts";
import type { Region } from "./regions.ts";
import { SECTOR_BYTES } from "./stamps.ts";

/** Reads ranges of an image; `see` gets the data of each. */
export function readServed(
  photo: SimulatedDisk,
  { path, format: name }: ImageModel,
  { ranges, see }: {
    ranges: Iterable<Region>;
    see: (data: Uint8Array, sector: number) => void;
  },
): void {
  const scheduler = new SimulatedScheduler();
  const connection = photo.connect(scheduler, { latencyMs: 0 });
  const context = createVbdContext({
    scheduler,
    backend: connection,
    files: connection,
    driverOf: checkedDrivers,
    log: () => {},
  });
  const vbd = new Vbd(context, 0);
  const format = formatNamed(name);
  try {
    vbd.open(format.nameOf(path), {
      readOnly: true,
      key: format.encrypted ? diskKey() : undefined,
    });
    for (const { sector, count } of ranges) {
      see(readRange(vbd, scheduler, { sector, count }), sector);
    }
    let isClosed = false;
    vbd.close(() => isClosed = true);
    scheduler.runUntil(() => isClosed);
  } finally {
    connection.die();
    vbd.requests.memory.release();
    context.queue.close();
  }
}

function readRange(
  vbd: Vbd,
  scheduler: SimulatedScheduler,
  { sector, count }: Region,
): Uint8Array {
  const { requests } = vbd;
  const slot = requests.takeSlot();
  let result: number | null = null;
  const owner = { requestDone: (_slot: number, errno: number): void => void (result = errno) };
  requests.start(slot, RequestKind.Read, sector, count, false, owner);
  scheduler.runUntil(() => result !== null);
  if (result !== 0) throw new Error(`A read of sectors ${sector}+${count} ended with ${result}`);
  const start = requests.slotOffset(slot);
  const data = requests.memory.bytes.slice(start, start + count * SECTOR_BYTES);
  requests.releaseSlot(slot);
  return data;
}
