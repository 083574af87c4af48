import { SECTOR_BYTES } from "../../ffi/memory.ts";
import { createEngine, type Engine } from "./engine.ts";
import { OpenImage } from "./open_image.ts";
import { walkImage } from "./walk.ts";

/** A range of a disk. */
export interface MapExtent {
  /** Offset of the range on the disk. */
  readonly offsetBytes: number;
  /** Length of the range. */
  readonly lengthBytes: number;
  /** The number of the image that holds it: 0 for the image itself; null for a hole. */
  readonly layer: number | null;
}

/** Which image of a chain holds which part of a disk. */
export interface ImageMap {
  /** The names of the images, the image itself first. */
  readonly layers: readonly string[];
  /** All of the disk, from start to end. */
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
    const data = await heldBy(engine, whole);
    const held: Held[][] = [];
    for (const spec of specs) {
      held.push(await heldBy(engine, await OpenImage.openAlone(engine, spec)));
    }
    const layers = specs.map(({ type, path }) => `${type}:${path}`);
    return { layers, extents: [...merge(held, { data, sectors })] };
  } finally {
    engine.close();
  }
}

/** The stretches in which an image has data. Closes the image. */
async function heldBy(engine: Engine, source: OpenImage): Promise<Held[]> {
  const stretches: Held[] = [];
  try {
    await walkImage(engine, {
      source,
      stretch({ sector, count }, isData): void {
        if (!isData) return;
        const last = stretches.at(-1);
        if (last?.end === sector) stretches.pop();
        const start = last?.end === sector ? last.start : sector;
        stretches.push({ start, end: sector + count });
      },
    });
  } finally {
    await source.close(engine);
  }
  return stretches;
}

/**
 * The topmost layer counts. What is a hole of the whole disk is one, although a layer below has data: a
 * layer above may say that there are zeros.
 */
function* merge(
  held: readonly Held[][],
  { data, sectors }: { data: readonly Held[]; sectors: number },
): Generator<MapExtent> {
  const next = held.map(() => 0);
  let shown = 0;
  let pending: { start: number; end: number; layer: number | null } | null = null;
  for (let at = 0; at < sectors;) {
    let end = sectors;
    let layer: number | null = null;
    while (shown < data.length && data[shown].end <= at) shown++;
    const isShown = shown < data.length && data[shown].start <= at;
    end = Math.min(end, isShown ? data[shown].end : data[shown]?.start ?? sectors);
    for (let i = 0; isShown && i < held.length && layer === null; i++) {
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
