/**
 * Writes to the disk of a case, through tapdisk's code and through the library's, against a model.
 *
 * @module
 */
import { Errno, SystemError } from "../../../../ffi/errno.ts";
import type { Random } from "../../../../src/testing/random.ts";
import { openChain } from "../../../../src/vhd/image/chain.ts";
import { finishWriting, writeRange } from "../../../../src/vhd/write.ts";
import type { SimulatedDevice } from "../../../support/sim.ts";
import { contentOf } from "./build_image.ts";
import { attempt, hold } from "./finding.ts";
import { partsOf, readServed, requireSame } from "./readings.ts";
import type { Subject } from "./subject.ts";

const SECTOR = 512;
/** What the driver may answer when a block finds no place. */
const NO_ROOM: readonly number[] = [Errno.EFBIG, Errno.ENOSPC];

/** A copy of what the disk reads as, into which writes go; and which of it is undefined. */
class Model {
  readonly bytes: Uint8Array<ArrayBuffer>;
  /** The sectors that are written: those of the first part of the disk. */
  readonly sectors: number;
  readonly #undefined = new Set<number>();

  constructor({ content }: Subject) {
    hold(content !== null, "There is nothing to write to");
    this.bytes = content.bytes.slice();
    this.sectors = partsOf(content.sizeBytes)[0].lengthBytes / SECTOR;
  }

  write(sector: number, data: Uint8Array): void {
    this.bytes.set(data, sector * SECTOR);
    for (let i = 0; i < data.length / SECTOR; i++) this.#undefined.delete(sector + i);
  }

  forget(sector: number, count: number): void {
    for (let i = 0; i < count; i++) this.#undefined.add(sector + i);
  }

  compare(got: Uint8Array, what: string): void {
    for (const sector of this.#undefined) {
      const at = sector * SECTOR;
      this.bytes.set(got.subarray(at, at + SECTOR), at);
    }
    requireSame(got, this.bytes, what);
  }
}

function drawPlace(random: Random, sectors: number): { sector: number; count: number } {
  const count = Math.min(sectors, random.chance(0.5) ? 1 + random.below(8) : 1 + random.below(64));
  return { sector: random.below(sectors - count + 1), count };
}

/** Writes, zeros, fills, discards and flushes through a served disk, and closes it. */
export function writeServed(subject: Subject, random: Random): void {
  const { stage, path, content } = subject;
  if (content === null || content.isEncrypted) return;
  const device = attempt(() => stage.serve(path, { readOnly: false }));
  if (device instanceof SystemError) {
    hold(device.errno === Errno.EFBIG, () => `It is served for reading only: ${device.message}`);
    return;
  }
  const model = new Model(subject);
  const steps = 1 + random.below(8);
  for (let i = 0; i < steps; i++) step(device, model, random);
  model.compare(readServed(device), "While it is served");
  const errno = stage.endService();
  hold(errno === 0, () => `Closing ends with error ${errno}`);
  stage.watch.requireWritten(path);
  subject.requireKept("serving", model.bytes);
}

function step(device: SimulatedDevice, model: Model, random: Random): void {
  const { sector, count } = drawPlace(random, model.sectors);
  const zeros = new Uint8Array(count * SECTOR);
  const data = contentOf(random.bits(), count * SECTOR);
  const kind = random.below(8);
  const outcome = kind < 4
    ? device.write(sector, data, kind === 3)
    : kind === 4
    ? device.zero(sector, count)
    : kind === 5
    ? device.fill(sector, count)
    : kind === 6
    ? device.discard(sector, count)
    : device.flush();
  device.settle();
  const { errno } = outcome;
  if (errno !== 0) {
    hold(errno !== null && NO_ROOM.includes(errno), () => `A request ends with error ${errno}`);
    return model.forget(sector, count);
  }
  if (kind < 4) model.write(sector, data);
  else if (kind < 6) model.write(sector, zeros);
  else if (kind === 6) model.forget(sector, count);
}

/** Writes through the library's synchronous code. */
export function writeOffline(subject: Subject, random: Random): void {
  const { stage, path, content, disk } = subject;
  if (content === null || content.isEncrypted) return;
  const chain = attempt(() => openChain(path, { storage: disk, readOnly: false }));
  if (chain instanceof SystemError) {
    hold(false, `It is opened for reading only: ${chain.message}`);
  }
  const model = new Model(subject);
  try {
    const [image] = chain.images;
    for (let i = 0; i < 1 + random.below(4); i++) {
      const { sector, count } = drawPlace(random, model.sectors);
      const data = contentOf(random.bits(), count * SECTOR);
      const end = attempt(() => writeRange(image, data, sector * SECTOR));
      if (end instanceof SystemError) {
        hold(NO_ROOM.includes(end.errno), () => `A write fails: ${end.message}`);
        model.forget(sector, count);
      } else model.write(sector, data);
    }
    finishWriting(image);
  } finally {
    chain.close();
  }
  stage.watch.requireWritten(path);
  if (subject.content !== null) subject.requireKept("writing offline", model.bytes);
}
