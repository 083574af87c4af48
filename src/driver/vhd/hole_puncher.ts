import { messageOf } from "../../../ffi/errno.ts";
import { type ImageContext, SECTOR_BYTES } from "../driver.ts";
import type { VhdFile } from "./vhd_file.ts";

const NONE = -1;

/** Frees the room of an image's data in its file, until the filesystem cannot do that. */
export class HolePuncher {
  readonly #file: VhdFile;
  readonly #context: ImageContext;
  #canPunch = true;

  constructor(file: VhdFile, context: ImageContext) {
    this.#file = file;
    this.#context = context;
  }

  /** Frees sectors. Their bits stay: what is freed reads as zeros, and not as the parent's. */
  punch(sector: number, count: number): void {
    const { sectorsPerBlock, bitmapSectors } = this.#file;
    for (const end = sector + count; sector < end && this.#canPunch;) {
      const block = Math.floor(sector / sectorsPerBlock);
      const inBlock = sector - block * sectorsPerBlock;
      const part = Math.min(end - sector, sectorsPerBlock - inBlock);
      const location = this.#file.locationOf(block);
      if (location !== NONE) this.#punchInFile(location + bitmapSectors + inBlock, part);
      sector += part;
    }
  }

  #punchInFile(fileSector: number, count: number): void {
    const { disk } = this.#file;
    try {
      this.#canPunch = disk.punchHole(fileSector * SECTOR_BYTES, count * SECTOR_BYTES);
    } catch (error) {
      this.#canPunch = false;
      this.#context.log(`${disk.path} cannot give room back: ${messageOf(error)}`);
    }
  }
}
