import { SECTOR_BYTES } from "../../ffi/memory.ts";
import { createEngine } from "./engine.ts";
import { OpenImage } from "./open_image.ts";
import { walkImage } from "./walk.ts";

/** A range of a disk. */
export interface MapExtent {
  readonly offsetBytes: number;
  readonly lengthBytes: number;
  /** The number of the image that holds it: 0 for the image itself; null for a hole. */
  readonly layer: number | null;
}

/** Which image of a chain holds which part of a disk. */
export interface ImageMap {
  /** The names of the images, the image itself first. */
  readonly layers: readonly string[];
  readonly extents: readonly MapExtent[];
}

/** A stretch of sectors from `start` to `end` that one image holds. */
interface Held {
  readonly start: number;
  readonly end: number;
}

/**
 * Finds out which image of a chain holds which part of a disk.
 *
 * @throws {SystemError} errors of the images.
 */
export async function mapImage(name: string): Promise<ImageMap> {
  const engine = createEngine(() => {});
  try {
    const whole = await OpenImage.open(engine, name, { readOnly: true });
    const { sectors } = whole;
    const specs = whole.layers.map(({ spec }) => spec);
    await whole.close(engine);
    const held: Held[][] = [];
    for (const spec of specs) {
      const image = await OpenImage.openAlone(engine, spec);
      const stretches: Held[] = [];
      try {
        await walkImage(engine, {
          source: image,
          stretch({ sector, count }, isData): void {
            const last = stretches.at(-1);
            if (!isData) return;
            if (last?.end === sector) {
              stretches[stretches.length - 1] = { ...last, end: sector + count };
            } else stretches.push({ start: sector, end: sector + count });
          },
        });
      } finally {
        await image.close(engine);
      }
      held.push(stretches);
    }
    const layers = specs.map(({ type, path }) => `${type}:${path}`);
    return { layers, extents: [...merge(held, sectors)] };
  } finally {
    engine.close();
  }
}

/** The topmost layer counts. */
function* merge(held: readonly Held[][], sectors: number): Generator<MapExtent> {
  const next = held.map(() => 0);
  let pending: { start: number; end: number; layer: number | null } | null = null;
  for (let at = 0; at < sectors;) {
    let end = sectors;
    let layer: number | null = null;
    for (let i = 0; i < held.length && layer === null; i++) {
      while (next[i] < held[i].length && held[i][next[i]].end <= at) next[i]++;
      const stretch = held[i][next[i]];
      if (stretch === undefined) continue;
      if (stretch.start <= at) [layer, end] = [i, Math.min(end, stretch.end)];
      else end = Math.min(end, stretch.start);
    }
    if (pending !== null && pending.layer === layer) pending.end = end;
    else {
      if (pending !== null) yield inBytes(pending);
      pending = { start: at, end, layer };
    }
    at = end;
  }
  if (pending !== null) yield inBytes(pending);
}

function inBytes(
  { start, end, layer }: { start: number; end: number; layer: number | null },
): MapExtent {
  return {
    offsetBytes: start * SECTOR_BYTES,
    lengthBytes: (end - start) * SECTOR_BYTES,
    layer,
  };
}
