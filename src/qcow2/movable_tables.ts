import { HeaderField } from "./format/header.ts";
import { SECTOR_BYTES } from "./format/units.ts";
import type { Qcow2Image } from "./image/image.ts";
import { changeHeader } from "./rebuild.ts";

/** The tables that the header leads to, which may get another place. */
export class MovableTables {
  readonly #image: Qcow2Image;
  #l1Offset: number;
  #refcountTableOffset: number;

  constructor(image: Qcow2Image) {
    this.#image = image;
    this.#l1Offset = Number(image.header.l1TableOffset);
    this.#refcountTableOffset = Number(image.header.refcountTableOffset);
  }

  /** Both tables. */
  get list(): readonly {
    readonly field: number;
    readonly offset: number;
    readonly bytes: number;
  }[] {
    const { l1, refcountTable } = this.#image;
    return [
      { field: HeaderField.L1TableOffset, offset: this.#l1Offset, bytes: l1.byteLength },
      {
        field: HeaderField.RefcountTableOffset,
        offset: this.#refcountTableOffset,
        bytes: refcountTable.byteLength,
      },
    ].filter(({ bytes }) => bytes > 0);
  }

  /** Writes sectors of the L1 table. */
  writeL1(sectors: Iterable<number>): void {
    this.#write(this.#image.l1, this.#l1Offset, sectors);
  }

  /** Writes sectors of the refcount table. */
  writeRefcountTable(sectors: Iterable<number>): void {
    this.#write(this.#image.refcountTable, this.#refcountTableOffset, sectors);
  }

  #write(table: DataView<ArrayBuffer>, offset: number, sectors: Iterable<number>): void {
    for (const sector of sectors) {
      const start = sector * SECTOR_BYTES;
      const length = Math.min(SECTOR_BYTES, table.byteLength - start);
      const bytes = new Uint8Array(table.buffer, table.byteOffset + start, length);
      this.#image.file.writeAt(bytes, offset + start);
    }
  }

  /** Writes a table to another place, and lets the header lead there once it is durable. */
  move(field: number, offset: number): void {
    const { l1, refcountTable, file, geometry: { clusterBytes } } = this.#image;
    const isL1 = field === HeaderField.L1TableOffset;
    const { buffer, byteOffset, byteLength } = isL1 ? l1 : refcountTable;
    const bytes = new Uint8Array(Math.ceil(byteLength / clusterBytes) * clusterBytes);
    bytes.set(new Uint8Array(buffer, byteOffset, byteLength));
    file.writeAt(bytes, offset);
    changeHeader(file, [{ offset: field, value: BigInt(offset) }]);
    if (isL1) this.#l1Offset = offset;
    else this.#refcountTableOffset = offset;
  }
}
