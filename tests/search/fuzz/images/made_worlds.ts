import { Random } from "../../../../src/testing/random.ts";
import { SimulatedDisk } from "../../../../src/testing/simulated_disk.ts";
import { getFile } from "../../../support/vhd.ts";
import { makeChain } from "../../images/chain.ts";
import { FOLDER, type World } from "./worlds.ts";

const MOST_FILE_BYTES = 2 * 1024 * 1024;

/**
 * A world of images as other programs may have made them.
 *
 * @param seed Decides the images, together with the code of `tests/search/images`.
 */
export function madeWorld(seed: number): World {
  for (let attempt = seed;; attempt++) {
    using disk = new SimulatedDisk();
    const { images } = makeChain(new Random(attempt), disk, {
      folder: FOLDER,
      mostLayers: 4,
      mostSectors: 700,
      mostDataSectors: 200,
      extremes: 0,
      encrypted: 0.05,
      damaged: 0.1,
    });
    if (images.some(({ path }) => disk.status(path).sizeBytes > MOST_FILE_BYTES)) continue;
    const files = new Map(images.map(({ path }) => [path, getFile(disk, path)]));
    return { name: `made ${seed}`, files };
  }
}
