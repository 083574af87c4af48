import { messageOf, SystemError } from "../../ffi/errno.ts";
import { SECTOR_BYTES } from "../../ffi/memory.ts";
import type { ImageDriver } from "../driver/driver.ts";
import { fileInName } from "../driver/layers.ts";
import { createEngine, type Engine } from "./engine.ts";
import { fileSizes } from "./file_sizes.ts";
import type { ImageFacts } from "./kind.ts";
import { kindOf } from "./kinds.ts";
import { OpenImage } from "./open_image.ts";

/** What is known of one image of a chain. */
export interface LayerInfo {
  /** `vhd:/disk.vhd`. */
  readonly name: string;
  /** `vhd`. */
  readonly type: string;
  /** Size of the disk; null when the image could not be opened. */
  readonly sizeBytes: number | null;
  /** Length of the file; null for what is no regular file. */
  readonly fileBytes: number | null;
  /** The room that the file takes; null for what is no regular file. */
  readonly roomBytes: number | null;
  /** What only the type has. */
  readonly facts: ImageFacts;
}

/** What is known of an image and those below it. */
export interface ImageInfo {
  /** The image itself first. Only that one when `chainError` is not null. */
  readonly layers: readonly LayerInfo[];
  /** Why the chain cannot be opened; null when it can. */
  readonly chainError: string | null;
}

/**
 * Describes an image and the images below it.
 *
 * @param name As for tapdisk: `vhd:/disk.vhd`.
 * @throws {SystemError} when nothing is known of the image.
 */
export async function imageInfo(name: string): Promise<ImageInfo> {
  const engine = createEngine(() => {});
  try {
    return await infoIn(engine, name);
  } finally {
    engine.close();
  }
}

async function infoIn(engine: Engine, name: string): Promise<ImageInfo> {
  let image: OpenImage;
  try {
    image = await OpenImage.open(engine, name, { readOnly: true });
  } catch (error) {
    const file = fileInName(name);
    const kind = file === null ? null : kindOf(file.driver.type);
    if (!(error instanceof SystemError) || file === null || kind?.facts === undefined) throw error;
    const facts = kind.facts(engine.context.files.storage, file.path);
    const type = file.driver.type;
    const layer = { name, type, sizeBytes: null, ...fileSizes(file.path), facts };
    return { layers: [layer], chainError: messageOf(error) };
  }
  try {
    const layers = image.layers.map((layer) => layerInfo(engine, layer));
    return { layers, chainError: null };
  } finally {
    await image.close(engine);
  }
}

function layerInfo(engine: Engine, { spec, sectors }: ImageDriver): LayerInfo {
  const name = `${spec.type}:${spec.path}`;
  const file = fileInName(name);
  const isFile = file !== null && file.above === "";
  const { storage } = engine.context.files;
  return {
    name,
    type: spec.type,
    sizeBytes: sectors * SECTOR_BYTES,
    ...(isFile ? fileSizes(file.path) : { fileBytes: null, roomBytes: null }),
    facts: isFile ? kindOf(spec.type)?.facts?.(storage, file.path) ?? {} : {},
  };
}
