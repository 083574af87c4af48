import { type Done, Errno, SystemError } from "../../ffi/errno.ts";
import type { ImageDriver, ImageSpec, RequestSink } from "../driver/driver.ts";
import { lastLayer, type NameLayer } from "../driver/layers.ts";
import type { DeviceContext } from "./vbd_context.ts";
import { leadsBack, MAX_CHAIN_DEPTH, tooManyLayers } from "../vhd/image/chain.ts";

/**
 * Opens an image and the images below it; the first of the list is the image itself.
 *
 * With a key the image itself must be encrypted; the images below it need not be.
 *
 * @throws {VhdChainError} ELOOP for a chain that leads back to itself or has too many layers.
 * @throws {SystemError} EINVAL for a key that is not wanted; what the images say.
 */
export function openImages(
  leaf: ImageSpec,
  context: DeviceContext,
  sink: RequestSink,
): ImageDriver[] {
  checkedLayer(leaf);
  const images: ImageDriver[] = [];
  const seen = new Set<string>();
  try {
    for (let spec: ImageSpec | null = leaf; spec !== null;) {
      refuseLoop(leaf, spec, { seen, context });
      sink = images.at(-1)?.sinkBelow ?? sink;
      const image: ImageDriver = context.driverOf(spec.type).open(spec, context, sink);
      images.push(image);
      spec = image.parent;
    }
    for (let i = images.length - 1; i > 0; i--) images[i - 1].putBelow?.(images[i]);
    if (leaf.key !== undefined && images[0].encrypted !== true) throw keyNotWanted(leaf);
    return images;
  } catch (error) {
    for (const image of images) closeImage(image, context.log);
    throw error;
  }
}

/**
 * The last layer of an image's name, which makes sense and may have a key if there is one.
 *
 * @throws {SystemError} EINVAL when it does not.
 */
export function checkedLayer(leaf: ImageSpec): NameLayer {
  const layer = lastLayer(`${leaf.type}:${leaf.path}`);
  if (leaf.key !== undefined && layer.driver.takesKey !== true) throw keyNotWanted(leaf);
  return layer;
}

function keyNotWanted({ path }: ImageSpec): SystemError {
  return new SystemError(
    Errno.EINVAL,
    `Cannot open ${path} with a key: it is not an encrypted image`,
  );
}

/** Closes an image. An error goes to the log, and then to `done`. */
export function closeImage(
  image: ImageDriver,
  log: (message: string) => void,
  done: Done = () => {},
): void {
  image.close((error) => {
    if (error !== null) log(`Cannot close ${image.spec.path} in order: ${error.message}`);
    done(error);
  });
}

function refuseLoop(
  leaf: ImageSpec,
  spec: ImageSpec,
  { seen, context }: { seen: Set<string>; context: DeviceContext },
): void {
  const { storage } = context.files;
  // A filter is no layer of the chain, and what is no file leads nowhere.
  const { kind, at } = context.driverOf(spec.type).named(spec.path);
  const file = spec.path.slice(at);
  if (kind !== "file" || !storage.exists(file)) return;
  const path = storage.realPath(file);
  if (seen.has(path)) throw leadsBack(leaf.path, path);
  if (seen.size >= MAX_CHAIN_DEPTH) throw tooManyLayers(leaf.path);
  seen.add(path);
}
