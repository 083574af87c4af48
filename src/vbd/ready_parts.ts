import type { ImageSpec } from "../driver/driver.ts";
import { firstLayer } from "../driver/layers.ts";
import type { ImageWish } from "./chain.ts";
import { mirrorWish, type ReadySecond } from "./mirror_wish.ts";
import type { OpenOptions } from "./open_options.ts";
import type { Preparation } from "./preparation.ts";
import type { Requests } from "./requests.ts";
import { leaveSecond, type Secondary } from "./secondary.ts";
import type { DeviceContext } from "./vbd_context.ts";

/** What was got ready for the images of a device, before they are opened. */
export interface ReadyParts {
  /** The secondary image; null without one. */
  readonly second: ReadySecond | null;
  /** What is read below the leaf instead of its own parent; null for that. */
  readonly parent: ImageSpec | null;
}

/** No part was got ready. */
export const NOTHING_READY: ReadyParts = { second: null, parent: null };

/**
 * The parent that a leaf had when another disk first stood for it. A leaf that has got another parent
 * since, as by a snapshot, has data there that the other disk has not.
 */
export class FirstParent {
  #name = "";

  /** Whether this is that parent; the first one is. */
  is({ type, path }: ImageSpec): boolean {
    const name = `${type}:${path}`;
    if (this.#name === "") this.#name = name;
    return this.#name === name;
  }

  /** There is no leaf any more. */
  reset(): void {
    this.#name = "";
  }
}

/** What is to be opened. */
export interface Opening {
  /** `type:path` */
  readonly name: string;
  readonly leaf: ImageSpec;
  readonly options: OpenOptions;
  /** Whether the secondary image is the one that the device had. */
  readonly isKept: boolean;
}

/** Gets parts ready, which may take time. After an error nothing is open. */
export function prepareParts(
  { name, leaf, options, isKept }: Opening,
  { secondary, preparation, context }: {
    secondary: Secondary;
    preparation: Preparation;
    context: DeviceContext;
  },
  ready: (error: unknown, parts: ReadyParts) => void,
): void {
  let parent: ImageSpec | null;
  try {
    parent = parentFor(leaf, options);
  } catch (error) {
    return ready(error, NOTHING_READY);
  }
  secondary.openLater(name, options, isKept, (error, second) => {
    if (error !== null) return ready(error, NOTHING_READY);
    const prepared = (failure: unknown): void => {
      if (failure !== null) leaveSecond(second);
      ready(failure, { second, parent });
    };
    preparation.run(parent ?? leaf, context, prepared, leaf);
  });
}

/** What is to be read below a leaf instead of its own parent. It is only read. */
export function parentFor(leaf: ImageSpec, { findParent }: OpenOptions): ImageSpec | null {
  const name = findParent?.() ?? null;
  return name === null ? null : { ...leaf, ...firstLayer(name), readOnly: true, key: undefined };
}

/** The stack of a device, with what stands around its image. */
export function wishFor(
  { leaf, options }: Pick<Opening, "leaf" | "options">,
  { second, parent }: ReadyParts,
  { context, secondary, requests, firstParent }: {
    context: DeviceContext;
    secondary: Secondary;
    requests: Requests;
    firstParent: FirstParent;
  },
): ImageWish {
  const { changedBlocks, localCache, standby } = options;
  const { scheduler, log, faults: device } = context;
  const standsFor = (own: ImageSpec): boolean => firstParent.is(own);
  const parts = { standby, scheduler, device, keeper: secondary };
  return {
    leaf,
    changedBlocks,
    ...(parent === null ? {} : { parent: { spec: parent, standsFor } }),
    ...(localCache === true ? { cache: { slots: requests.own, scheduler, log } } : {}),
    ...(second === null ? {} : mirrorWish(leaf, second, parts)),
  };
}

/** The top layer of a name, as it is opened. */
export function leafOf(
  name: string,
  { readOnly = false, direct = true, key }: OpenOptions,
): ImageSpec {
  return { ...firstLayer(name), readOnly, direct, key };
}
