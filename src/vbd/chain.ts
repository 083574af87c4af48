import { type Done, Errno, SystemError, systemError } from "../../ffi/errno.ts";
import { CbtImage } from "../driver/cbt.ts";
import { canCache, localCache, type LocalCacheWish } from "../driver/local_cache.ts";
import type { ImageDriver, ImageSpec, RequestSink } from "../driver/driver.ts";
import { lastLayer, type NameLayer } from "../driver/layers.ts";
import type { DeviceContext } from "./vbd_context.ts";
import { type LayerPlace, walkLayers } from "../vhd/image/chain_walk.ts";

/** Makes an image of the stack; the argument is where it tells the ends of pieces. */
export type LayerMaker = (sink: RequestSink) => ImageDriver;

/** What is opened for a device. */
export interface ImageWish {
  readonly leaf: ImageSpec;
  /** The log of changed blocks to stand in front of it. */
  readonly changedBlocks?: string;
  /** What stands in front of an image that has a secondary image. */
  readonly mirror?: LayerMaker;
  /** A secondary image that is read below the leaf, and what stands between them. */
  readonly second?: { readonly spec: ImageSpec; readonly between: LayerMaker };
  /** What keeps in the leaf what is read below it. */
  readonly cache?: LocalCacheWish;
  /** What is read below the leaf instead of its own parent, if it has the parent that it had first. */
  readonly parent?: { readonly spec: ImageSpec; standsFor(own: ImageSpec): boolean };
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
  wish: ImageWish,
  context: DeviceContext,
  sink: RequestSink,
): ImageDriver[] {
  const { leaf, changedBlocks } = wish;
  const stack = new StackBuilder(wish, context, sink);
  const { images } = stack;
  const { storage } = context.files;
  try {
    // First of all: a second disk is open, and is closed with its mirror.
    if (wish.mirror !== undefined) stack.put(wish.mirror);
    checkedLayer(leaf);
    const walk = walkLayers<ImagePlace, ImageDriver>({
      storage,
      name: leaf.path,
      topPath: layerPath(leaf, context),
      top: stack.openLayer(leaf),
      below: (layer) => {
        const parent = stack.parentOf(layer);
        return parent && { spec: parent, path: layerPath(parent, context) };
      },
      open: ({ spec }) => stack.openLayer(spec),
    });
    for (const step of walk) if (step.parent === null) break;
    for (let i = images.length - 1; i > 0; i--) images[i - 1].putBelow?.(images[i]);
    if (leaf.key !== undefined && images[0].encrypted !== true) throw keyNotWanted(leaf);
    if (changedBlocks !== undefined) {
      images.unshift(new CbtImage(changedBlocks, images[0], context, sink));
    }
    return images;
  } catch (error) {
    dropImages(images, context.log);
    throw error;
  }
}

/** Builds the stack of a device from the top down: each image tells the one above of its pieces. */
class StackBuilder {
  readonly images: ImageDriver[] = [];
  readonly #wish: ImageWish;
  readonly #context: DeviceContext;
  #sink: RequestSink;
  /** The first image that is no filter. */
  #leaf: ImageDriver | null = null;

  constructor(wish: ImageWish, context: DeviceContext, sink: RequestSink) {
    this.#wish = wish;
    this.#context = context;
    this.#sink = sink;
  }

  /** Puts an image below those that are there. */
  put(make: LayerMaker): ImageDriver {
    this.#sink = this.images.at(-1)?.sinkBelow ?? this.#sink;
    const image = make(this.#sink);
    this.images.push(image);
    return image;
  }

  #open(spec: ImageSpec): ImageDriver {
    const { driverOf } = this.#context;
    return this.put((sink) => driverOf(spec.type).open(spec, this.#context, sink));
  }

  /** Opens a layer of the chain, with what belongs around it. */
  openLayer(spec: ImageSpec): ImageDriver {
    const { cache, second } = this.#wish;
    const isFilter = this.#context.driverOf(spec.type).named(spec.path).kind === "image";
    if (isFilter || this.#leaf !== null) return this.#open(spec);
    const local = cache === undefined ? null : localCache(spec, cache);
    if (local !== null) this.put(local.front);
    const leaf = this.#open(spec);
    this.#leaf = leaf;
    if (local !== null && canCache(leaf)) this.put(local.below);
    if (second !== undefined) {
      this.put(second.between);
      const { encrypted } = this.#open(second.spec);
      if (second.spec.key !== undefined && encrypted !== true) throw keyNotWanted(second.spec);
    }
    return leaf;
  }

  /** What is below a layer. Throws `SystemError` EINVAL for a leaf that is to have another parent. */
  parentOf(layer: ImageDriver): ImageSpec | null {
    const { parent } = this.#wish;
    if (layer !== this.#leaf || parent === undefined) return layer.parent;
    if (layer.parent !== null) return parent.standsFor(layer.parent) ? parent.spec : layer.parent;
    const why = "it has no parent, which another disk could stand for";
    throw new SystemError(Errno.EINVAL, `Cannot open ${layer.spec.path} (${why})`);
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

/**
 * Closes images that are not used after all. Files are closed at once, without a sync: nothing went
 * to them, and the caller may open them again right away.
 */
export function dropImages(images: readonly ImageDriver[], log: (message: string) => void): void {
  for (const image of images) {
    if (image.file === undefined) {
      closeImage(image, log);
      continue;
    }
    try {
      image.abandon();
    } catch (error) {
      log(systemError(error, `Cannot close ${image.spec.path}`).message);
    }
  }
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
