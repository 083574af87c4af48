import type { Qcow2Image } from "./image/image.ts";

/** Reads tables of one cluster each. A table that lies in a hole of the file is not read. */
export class TableReader {
  readonly #image: Qcow2Image;
  readonly #bytes: Uint8Array<ArrayBuffer>;
  readonly #view: DataView<ArrayBuffer>;
  readonly #fileBytes: number;
  /** A run of the file that is known, and whether it is a hole. */
  #start = 0;
  #end = 0;
  #isHole = false;

  constructor(image: Qcow2Image) {
    this.#image = image;
    this.#bytes = new Uint8Array(image.geometry.clusterBytes);
    this.#view = new DataView(this.#bytes.buffer);
    this.#fileBytes = image.file.sizeBytes();
  }

  /** The table at an offset, until the next one is read; null for one that has only zeros. */
  read(offset: number): DataView<ArrayBuffer> | null {
    const { file } = this.#image;
    if (offset >= this.#fileBytes) return null;
    if (offset < this.#start || offset >= this.#end) {
      const run = file.allocatedRun(offset, this.#fileBytes - offset);
      this.#isHole = run < 0;
      this.#start = offset;
      this.#end = offset + Math.abs(run);
    }
    if (this.#isHole && offset + this.#bytes.length <= this.#end) return null;
    this.#bytes.fill(0, file.readAt(this.#bytes, offset));
    return this.#view;
  }
}
