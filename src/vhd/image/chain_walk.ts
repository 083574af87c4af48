/**
 * The loop over the layers of a chain, used by all code that follows chains. It applies the limits:
 * at most {@linkcode MAX_CHAIN_DEPTH} layers, and no file twice.
 *
 * @module
 */
import { Errno } from "../../../ffi/errno.ts";
import { canonicalPath } from "../../files/paths.ts";
import type { Storage } from "../../files/storage.ts";
import { VhdChainError } from "./errors.ts";

/** The largest number of layers in a chain. */
export const MAX_CHAIN_DEPTH = 256;

/** The place of a layer. */
export interface LayerPlace {
  /**
   * The layer's file; null for an element that is no layer, such as a filter in front of an image.
   */
  readonly path: string | null;
}

/** A chain to walk. */
export interface LayerWalk<Place extends LayerPlace, Layer> {
  readonly storage: Storage;
  /** The name of the chain in errors: the name of its top. */
  readonly name: string;
  readonly topPath: string | null;
  /** The open top of the chain. */
  readonly top: Layer;
  /** The place of the layer below; null at the end of the chain. */
  below(layer: Layer): Place | null;
  /** Opens the layer at a place. The limits have been checked. */
  open(place: Place): Layer;
  /** {@linkcode MAX_CHAIN_DEPTH} by default. */
  readonly limit?: number;
  /** An error about a file that occurs twice names the layer that refers to it, not the top. */
  readonly blamesLayer?: boolean;
}

/** One layer of a walk. */
export class LayerStep<Place extends LayerPlace, Layer> {
  readonly layer: Layer;
  #parent: Place | null | undefined;
  readonly #find: () => Place | null;

  /** Only {@linkcode walkLayers} makes steps. */
  constructor(layer: Layer, find: () => Place | null) {
    this.layer = layer;
    this.#find = find;
  }

  /**
   * The place of the layer below. It is located on the first access, which throws the errors of
   * `below`.
   */
  get parent(): Place | null {
    if (this.#parent === undefined) this.#parent = this.#find();
    return this.#parent;
  }
}

/**
 * Walks down a chain. A layer is opened when the walk goes on to it. The caller may stop before
 * that.
 *
 * @throws {VhdChainError} ELOOP for a file that is already in the chain, and for too many layers.
 */
export function* walkLayers<Place extends LayerPlace, Layer>(
  walk: LayerWalk<Place, Layer>,
): Generator<LayerStep<Place, Layer>> {
  const limits = new Limits(walk);
  limits.enter(walk.topPath, walk.name);
  let above = walk.topPath ?? walk.name;
  for (let layer = walk.top;;) {
    const step = new LayerStep<Place, Layer>(layer, () => {
      const place = walk.below(layer);
      if (place !== null) limits.enter(place.path, above);
      return place;
    });
    yield step;
    const { parent } = step;
    if (parent === null) return;
    above = parent.path ?? above;
    layer = walk.open(parent);
  }
}

/** The limits of a walk, and the layers that it has visited. */
class Limits {
  readonly #storage: Storage;
  readonly #name: string;
  readonly #limit: number;
  readonly #blamesLayer: boolean;
  readonly #seen = new Set<string>();
  #layers = 0;

  constructor(
    { storage, name, limit = MAX_CHAIN_DEPTH, blamesLayer = false }: Pick<
      LayerWalk<LayerPlace, unknown>,
      "storage" | "name" | "limit" | "blamesLayer"
    >,
  ) {
    this.#storage = storage;
    this.#name = name;
    this.#limit = limit;
    this.#blamesLayer = blamesLayer;
  }

  /** @param above The layer that refers to `path`. */
  enter(path: string | null, above: string): void {
    if (path === null) return;
    if (this.#storage.exists(path)) this.#refuseSecondVisit(path, above);
    if (++this.#layers <= this.#limit) return;
    throw new VhdChainError(
      this.#name,
      Errno.ELOOP,
      `it has more than ${this.#limit} layers, the most that a chain may have (ELOOP)`,
    );
  }

  /**
   * A file may have several names, and a device several nodes, so both names and inodes are
   * compared.
   */
  #refuseSecondVisit(path: string, above: string): void {
    const name = canonicalPath(this.#storage, path);
    const { device, inode } = this.#storage.locate(path);
    const file = `${device}:${inode}`;
    if (this.#seen.has(name) || this.#seen.has(file)) {
      const blamed = this.#blamesLayer ? above : this.#name;
      throw new VhdChainError(blamed, Errno.ELOOP, `it leads back to ${name} (ELOOP)`);
    }
    this.#seen.add(name).add(file);
  }
}
