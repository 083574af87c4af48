import { Errno, messageOf, SystemError } from "../../ffi/errno.ts";
import { namesInFolder, pathStatus, realPath } from "../../ffi/paths.ts";
import { snapshotDevice } from "../control/client/client.ts";
import { allDrivers } from "../driver/registry.ts";
import { osStorage } from "../files/storage.ts";
import { fileSizes } from "../images/file_sizes.ts";
import { imageInfo, type LayerInfo } from "../images/info.ts";
import { kindOf } from "../images/kinds.ts";
import { mapImage } from "../images/map.ts";
import { countBuckets } from "../pictures/buckets.ts";
import type { LayerDescription } from "../pictures/descriptions.ts";
import { MAP_BUCKETS } from "../pictures/map_picture.ts";
import type { ChainFacts, FoundImage, MapFacts, ScanFacts, SnapshotFacts, Work } from "./work.ts";

/** Image files that a scan looks into, and names in folders that it reads. */
const MOST_FOUND = 500;
const MOST_NAMES = 20_000;
/** A scan ends after this time with what it has found. */
const LONGEST_SCAN_MS = 60_000;
/** After each image the scan rests so many times as long as it took: others use the disks, too. */
const REST = 2;
const LONGEST_REST_MS = 50;
/** Suffixes of raw images. */
const RAW_SUFFIXES = [".raw", ".img"];

/** Does a piece of work. Throws what fails. */
export async function doWork(work: Work): Promise<unknown> {
  switch (work.kind) {
    case "chain":
      return await chainFacts(work.image);
    case "map":
      return await mapFacts(work);
    case "scan":
      return await scan(work.folders);
    case "snapshot": {
      const { pid, minor, path, rename, timeoutSeconds } = work;
      const made = snapshotDevice({ pid, minor }, { path, rename, timeoutSeconds });
      return made satisfies SnapshotFacts;
    }
  }
}

/** How much of a disk an image holds itself, as far as its type says. */
function heldBytes({ facts }: LayerInfo): number | null {
  const { allocatedBlocks, blockSizeBytes } = facts;
  if (typeof allocatedBlocks !== "number" || typeof blockSizeBytes !== "number") return null;
  return allocatedBlocks * blockSizeBytes;
}

function describe(layer: LayerInfo): LayerDescription {
  const { name, type, sizeBytes, fileBytes, facts } = layer;
  const notes = [
    ...(typeof facts.kind === "string" ? [facts.kind] : []),
    ...(facts.hidden === true ? ["hidden"] : []),
    ...(facts.encrypted === true ? ["encrypted"] : []),
  ];
  return { name, type, sizeBytes, fileBytes, heldBytes: heldBytes(layer), notes, problem: null };
}

async function chainFacts(image: string): Promise<ChainFacts> {
  const { layers, chainError } = await imageInfo(image);
  return { layers: layers.map(describe), problem: chainError };
}

async function mapFacts(
  { image, startBytes, lengthBytes }: Extract<Work, { kind: "map" }>,
): Promise<MapFacts> {
  const { layers, extents } = await mapImage(image);
  const last = extents.at(-1);
  const sizeBytes = last === undefined ? 0 : last.offsetBytes + last.lengthBytes;
  const buckets = countBuckets(extents, {
    sizeBytes,
    layerCount: layers.length,
    most: MAP_BUCKETS,
    startBytes,
    lengthBytes: lengthBytes ?? sizeBytes,
    leastBytes: 512,
  });
  const { endBytes, bucketBytes, count, heldBytes: held, totals } = buckets;
  return {
    sizeBytes,
    layers,
    startBytes: buckets.startBytes,
    endBytes,
    bucketBytes,
    count,
    heldBytes: [...held],
    totals: [...totals],
  };
}

/** The type of an image file, as far as its name tells; null for what is none. */
function typeOf(name: string): string | null {
  if (RAW_SUFFIXES.some((suffix) => name.endsWith(suffix))) return "aio";
  const driver = allDrivers().find(({ suffix }) => suffix !== undefined && name.endsWith(suffix));
  return driver?.type ?? null;
}

/** What only the type has, in words. */
function factsText(facts: Readonly<Record<string, unknown>>): string {
  return Object.entries(facts)
    .filter(([name, value]) => name !== "uuid" && value !== null && value !== false)
    .map(([name, value]) => {
      const words = name.replace(/[A-Z]/g, (letter) => ` ${letter.toLowerCase()}`);
      return value === true ? words : `${words} ${value}`;
    }).join(", ");
}

function lookInto(type: string, path: string): FoundImage {
  const name = `${type}:${path}`;
  try {
    // To open a pipe waits for its other end, and to open a device may do something.
    if (pathStatus(path).kind !== "file") {
      throw new SystemError(Errno.EINVAL, `Cannot read ${path} (it is no regular file)`);
    }
    const facts = kindOf(type)?.facts?.(osStorage, path) ?? {};
    const sizes = fileSizes(path);
    return { name, realPath: realPath(path), ...sizes, facts: factsText(facts), problem: null };
  } catch (error) {
    const problem = messageOf(error);
    return { name, realPath: null, fileBytes: null, roomBytes: null, facts: "", problem };
  }
}

/** The image files of folders; folders within them are not looked into. */
async function scan(folders: readonly string[]): Promise<ScanFacts> {
  const untilMs = performance.now() + LONGEST_SCAN_MS;
  const images: FoundImage[] = [];
  const problems: string[] = [];
  let left = MOST_NAMES;
  for (const folder of folders) {
    let names: string[];
    try {
      names = namesInFolder(folder).sort();
    } catch (error) {
      problems.push(messageOf(error));
      continue;
    }
    for (const name of names) {
      const beganMs = performance.now();
      if (--left < 0 || images.length >= MOST_FOUND || beganMs > untilMs) {
        return { images, problems, isCut: true };
      }
      const type = typeOf(name);
      if (type === null) continue;
      images.push(lookInto(type, `${folder}/${name}`));
      const restMs = Math.min(LONGEST_REST_MS, REST * (performance.now() - beganMs));
      await new Promise((resolve) => setTimeout(resolve, restMs));
    }
  }
  return { images, problems, isCut: false };
}
