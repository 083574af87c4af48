import type { ImageDriver } from "../driver/driver.ts";
import { FilterImage } from "../driver/filter.ts";
import { LocalCacheBelow } from "../driver/local_cache.ts";
import { MirrorImage } from "./mirror.ts";
import { ThroughSecond } from "./through_second.ts";

function isListed(image: ImageDriver): boolean {
  return !(image instanceof FilterImage && image.isUnlisted);
}

/**
 * The images of a device as statistics list them, in the order in which reads ask them: without those
 * that only connect others, and with a secondary image that is no layer of the chain.
 */
export function listedImages(images: readonly ImageDriver[]): readonly ImageDriver[] {
  const mirror = images.find((image) => image instanceof MirrorImage);
  if (mirror === undefined || mirror.reads === "not") return images.filter(isListed);
  const { second } = mirror;
  const top = second instanceof ThroughSecond ? second.below : second.images[0];
  const at = images.indexOf(mirror);
  const above = images.slice(0, at).filter(isListed);
  const below = images.slice(at).filter(isListed);
  if (mirror.reads === "before") return [...above, top, ...below.filter((each) => each !== top)];
  if (second instanceof ThroughSecond) return [...above, ...below];
  const leaf = below.slice(0, below[1] instanceof LocalCacheBelow ? 2 : 1);
  return [...above, ...leaf, top, ...below.slice(leaf.length)];
}
