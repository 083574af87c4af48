import type { ImageDriver, ImageSpec } from "../driver/driver.ts";
import type { ImageName } from "../driver/image_name.ts";
import { firstLayer } from "../driver/layers.ts";
import type { FaultOwner } from "../scheduler/faults.ts";
import type { Scheduler } from "../scheduler/scheduler.ts";
import { DD_BLK_UNUSED } from "../vhd/format/bat.ts";
import { openVhd } from "../vhd/image/image.ts";
import { BesideSecond, type SecondDisk } from "./beside_second.ts";
import type { ImageWish } from "./chain.ts";
import { MirrorImage, type MirrorKeeper } from "./mirror.ts";
import type { SecondSink } from "./second.ts";
import { ThroughSecond } from "./through_second.ts";
import type { DeviceContext } from "./vbd_context.ts";

/**
 * How a secondary image is used: as a disk of its own, which is open, or as a layer of the device's
 * chain, which is opened with it.
 */
export type ReadySecond = { readonly disk: SecondDisk } | { readonly layer: ImageName };

/**
 * Whether a secondary image is a layer below the leaf, as in the original, and whether that has data:
 * both are differencing VHDs, so that what neither has is in the parent. A secondary image that was
 * written earlier, and a leaf that is new, make one disk.
 */
export function layerKind(
  leaf: string,
  secondary: string,
  context: DeviceContext,
): "none" | "empty" | "data" {
  if (blocksOf(leaf, context) === null) return "none";
  const blocks = blocksOf(secondary, context);
  if (blocks === null) return "none";
  return blocks.every((block) => block === DD_BLK_UNUSED) ? "empty" : "data";
}

/** Where the blocks of a differencing VHD are; null for other images. */
function blocksOf(
  name: string,
  { driverOf, files: { storage } }: DeviceContext,
): Uint32Array | null {
  try {
    const { type, path } = firstLayer(name);
    if (driverOf(type).parentAs !== "vhd") return null;
    const image = openVhd(path, { storage, readOnly: true });
    image.close();
    return image.type === "differencing" ? image.bat : null;
  } catch {
    // Opening the image says why.
    return null;
  }
}

/** What stands in front of an image with a secondary image, and below it. */
export function mirrorWish(
  leaf: ImageSpec,
  second: ReadySecond,
  { standby = false, scheduler, device, keeper }: {
    standby?: boolean;
    scheduler: Scheduler;
    device: FaultOwner;
    keeper: MirrorKeeper;
  },
): Pick<ImageWish, "mirror" | "second"> {
  const parts = { standby, scheduler, keeper };
  if ("disk" in second) {
    const secondFor = (mirror: SecondSink): BesideSecond =>
      new BesideSecond(second.disk, device, mirror);
    return { mirror: (sink): ImageDriver => new MirrorImage(leaf, { ...parts, secondFor, sink }) };
  }
  const spec = { ...leaf, ...second.layer };
  const through = new ThroughSecond(spec);
  const secondFor = (mirror: SecondSink): ThroughSecond => through.madeFor(mirror);
  return {
    mirror: (sink): ImageDriver => new MirrorImage(leaf, { ...parts, secondFor, sink }),
    second: { spec, between: (sink): ImageDriver => through.placed(sink) },
  };
}
