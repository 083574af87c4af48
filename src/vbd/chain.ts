import { type Done, Errno, SystemError } from "../../ffi/errno.ts";
import { CbtImage } from "../driver/cbt.ts";
import type { ImageDriver, ImageSpec, RequestSink } from "../driver/driver.ts";
import { lastLayer, type NameLayer } from "../driver/layers.ts";
import type { DeviceContext } from "./vbd_context.ts";
import { type LayerPlace, walkLayers } from "../vhd/image/chain_walk.ts";

/** What is opened for a device. */
export interface ImageWish {
  readonly leaf: ImageSpec;
  /** The log of changed blocks to stand in front of it. */
  readonly changedBlocks?: string;
  /** Makes what stands in front of an image that has a secondary image. */
  readonly mirror?: (sink: RequestSink) => ImageDriver;
}

/**
 * Opens an image and the images below it, and what stands in front of it; the top one is the first of
 * the list.
 *
 * With a key the image itself must be encrypted; the images below it need not be.
 *
 * @throws {VhdChainError} ELOOP for a chain that leads back to itself or has too many layers.
 * @throws {SystemError} EINVAL for a key that is not wanted; EPERM for a log of changed blocks that
 * cannot be used; what the images say.
 */
export function openImages(
  { leaf, changedBlocks, mirror }: ImageWish,
  context: DeviceContext,
  sink: RequestSink,
): ImageDriver[] {
  checkedLayer(leaf);
  const images: ImageDriver[] = [];
  const { storage } = context.files;
  const open = (spec: ImageSpec): ImageDriver => {
    sink = images.at(-1)?.sinkBelow ?? sink;
    const image = context.driverOf(spec.type).open(spec, context, sink);
    images.push(image);
    return image;
  };
  try {
    if (mirror !== undefined) images.push(mirror(sink));
    const walk = walkLayers<ImagePlace, ImageDriver>({
      storage,
      name: leaf.path,
      topPath: layerPath(leaf, context),
      top: open(leaf),
      below: ({ parent }) => parent && { spec: parent, path: layerPath(parent, context) },
      open: ({ spec }) => open(spec),
    });
    for (const step of walk) if (step.parent === null) break;
    for (let i = images.length - 1; i > 0; i--) images[i - 1].putBelow?.(images[i]);
    if (leaf.key !== undefined && images[0].encrypted !== true) throw keyNotWanted(leaf);
    if (changedBlocks !== undefined) {
      images.unshift(new CbtImage(changedBlocks, images[0], context));
    }
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

/** What leads to an image below another. */
interface ImagePlace extends LayerPlace {
  readonly spec: ImageSpec;
}

/** The image's file; null for a filter, which is no layer of the chain, and for what is no file. */
function layerPath({ type, path }: ImageSpec, { driverOf }: DeviceContext): string | null {
  const { kind, at } = driverOf(type).named(path);
  return kind === "file" ? path.slice(at) : null;
}
