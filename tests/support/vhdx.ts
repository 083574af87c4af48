/**
 * Makes VHDX images that no program here makes: differencing ones, ones with a log that was left
 * behind, with sectors of 4096 bytes, with anything wrong. It shares nothing with the reader.
 *
 * @module
 */
const MIB = 1 << 20;

/** What eight bits do to a CRC-32C. */
const CRC_OF_BYTE = Uint32Array.from({ length: 256 }, (_, byte) => {
  let crc = byte;
  for (let i = 0; i < 8; i++) crc = (crc >>> 1) ^ ((crc & 1) * 0x82f63b78);
  return crc;
});

/** CRC-32C. */
export function crc32c(bytes: Uint8Array): number {
  let crc = 0xffffffff;
  for (let i = 0; i < bytes.length; i++) {
    crc = (crc >>> 8) ^ CRC_OF_BYTE[(crc ^ bytes[i]) & 0xff];
  }
  return ~crc >>> 0;
}

/** The bytes of a GUID as Microsoft orders them. */
export function guidBytes(text: string): Uint8Array {
  const hex = Uint8Array.fromHex(text.replaceAll("-", ""));
  return Uint8Array.of(...[3, 2, 1, 0, 5, 4, 7, 6].map((i) => hex[i]), ...hex.subarray(8));
}

/** An image that is to be made. */
export interface VhdxWish {
  readonly sizeBytes: number;
  readonly blockBytes?: number;
  readonly sectorBytes?: number;
  readonly dataGuid: string;
  /** Of a differencing image. */
  readonly parent?: { readonly path: string; readonly dataGuid: string };
  /** Content by sector of 512 bytes; whole blocks are stored when `isWhole` says so. */
  readonly sectors: ReadonlyMap<number, Uint8Array>;
  readonly isWhole?: (block: number) => boolean;
  /** Further regions and items, which are required or not. */
  readonly regions?: readonly { guid: string; isRequired: boolean }[];
  readonly items?: readonly { guid: string; isRequired: boolean }[];
}

/** The bytes of an image, and where its parts are. */
export class MadeVhdx {
  bytes: Uint8Array<ArrayBuffer>;
  readonly batAt = 3 * MIB;
  readonly metadataAt = 2 * MIB;
  readonly logAt = MIB;
  readonly #wish: VhdxWish;
  #sequence = 5n;

  constructor(wish: VhdxWish) {
    this.#wish = wish;
    const { sizeBytes, blockBytes = 2 * MIB, sectorBytes = 512 } = wish;
    const blocks = Math.ceil(sizeBytes / blockBytes);
    const perBitmap = (2 ** 23 * sectorBytes) / blockBytes;
    const used = [
      ...new Set([...wish.sectors.keys()].map((s) => Math.floor(s * 512 / blockBytes))),
    ];
    const bitmaps = wish.parent === undefined ? 0 : Math.ceil(blocks / perBitmap);
    this.bytes = new Uint8Array(4 * MIB + bitmaps * MIB + used.length * blockBytes);
    let next = 4 * MIB;
    const bitmapAt = Array.from({ length: bitmaps }, (_, chunk) => {
      const at = next;
      next += MIB;
      this.setBat(chunk * (perBitmap + 1) + perBitmap, at, 6);
      return at;
    });
    for (const block of used.sort((a, b) => a - b)) {
      const isPartial = bitmaps > 0 && wish.isWhole?.(block) !== true;
      this.setBat(block + Math.floor(block / perBitmap), next, isPartial ? 7 : 6);
      for (const [sector, data] of wish.sectors) {
        if (Math.floor(sector * 512 / blockBytes) !== block) continue;
        this.bytes.set(data, next + sector * 512 - block * blockBytes);
        const bit = Math.floor(sector * 512 / sectorBytes) % 2 ** 23;
        const chunk = Math.floor(block / perBitmap);
        if (bitmaps > 0) this.bytes[bitmapAt[chunk] + (bit >> 3)] |= 1 << (bit & 7);
      }
      next += blockBytes;
    }
    this.#putFront();
    this.#putMetadata();
    this.putHeaders("00000000-0000-0000-0000-000000000000");
  }

  get view(): DataView<ArrayBuffer> {
    return new DataView(this.bytes.buffer);
  }

  /** Sets an entry of the block table. */
  setBat(entry: number, at: number, state: number): void {
    this.view.setBigUint64(this.batAt + 8 * entry, BigInt(at) | BigInt(state), true);
  }

  #text(at: number, text: string): void {
    this.bytes.set(new TextEncoder().encode(text), at);
  }

  /** Writes the checksum of a structure. */
  seal(at: number, length: number): void {
    this.view.setUint32(at + 4, 0, true);
    this.view.setUint32(at + 4, crc32c(this.bytes.subarray(at, at + length)), true);
  }

  #putFront(): void {
    this.#text(0, "vhdxfile");
    const regions = [
      {
        guid: "2dc27766-f623-4200-9d64-115e9bfd4a08",
        at: this.batAt,
        length: MIB,
        isRequired: true,
      },
      {
        guid: "8b7ca206-4790-4b9a-b8fe-575f050f886e",
        at: this.metadataAt,
        length: MIB,
        isRequired: true,
      },
      ...(this.#wish.regions ?? []).map((region) => ({ ...region, at: MIB, length: 4096 })),
    ];
    for (const at of [192 * 1024, 256 * 1024]) {
      this.#text(at, "regi");
      this.view.setUint32(at + 8, regions.length, true);
      for (const [i, region] of regions.entries()) {
        const entry = at + 16 + 32 * i;
        this.bytes.set(guidBytes(region.guid), entry);
        this.view.setBigUint64(entry + 16, BigInt(region.at), true);
        this.view.setUint32(entry + 24, region.length, true);
        this.view.setUint32(entry + 28, region.isRequired ? 1 : 0, true);
      }
      this.seal(at, 65536);
    }
  }

  /** Writes both headers; the second one is the newer. */
  putHeaders(logGuid: string): void {
    for (const at of [65536, 131072]) {
      this.#text(at, "head");
      this.view.setBigUint64(at + 8, this.#sequence++, true);
      this.bytes.set(guidBytes("11111111-2222-4333-8444-555555555555"), at + 16);
      this.bytes.set(guidBytes(this.#wish.dataGuid), at + 32);
      this.bytes.set(guidBytes(logGuid), at + 48);
      this.view.setUint16(at + 66, 1, true);
      this.view.setUint32(at + 68, MIB, true);
      this.view.setBigUint64(at + 72, BigInt(this.logAt), true);
      this.seal(at, 4096);
    }
  }

  #putMetadata(): void {
    const { sizeBytes, blockBytes = 2 * MIB, sectorBytes = 512, parent } = this.#wish;
    const number = (value: number, length: number): Uint8Array => {
      const bytes = new Uint8Array(length);
      new DataView(bytes.buffer).setBigUint64(0, BigInt(value), true);
      return bytes;
    };
    const parameters = number(blockBytes, 8);
    parameters[4] = parent === undefined ? 0 : 2;
    const items = [
      ["caa16737-fa36-4d43-b3b6-33f0aa44e76b", parameters, 4],
      ["2fa54224-cd1b-4876-b211-5dbed83bf4b8", number(sizeBytes, 8), 6],
      ["beca12ab-b2e6-4523-93ef-c309e000c746", new Uint8Array(16).fill(7), 6],
      ["8141bf1d-a96f-4709-ba47-f233a8faab5f", number(sectorBytes, 8).subarray(0, 4), 6],
      ["cda348c7-445d-4471-9cc9-e9885251c556", number(4096, 8).subarray(0, 4), 6],
      ...(parent === undefined
        ? []
        : [["a8d35f2d-b30b-454d-abf7-d3d84834ab0c", locatorOf(parent), 4] as const]),
      ...(this.#wish.items ?? []).map(({ guid, isRequired }) =>
        [guid, new Uint8Array(8), isRequired ? 4 : 0] as const
      ),
    ] as const;
    const at = this.metadataAt;
    this.#text(at, "metadata");
    this.view.setUint16(at + 10, items.length, true);
    let offset = 65536;
    for (const [i, [guid, bytes, flags]] of items.entries()) {
      const entry = at + 32 + 32 * i;
      this.bytes.set(guidBytes(guid), entry);
      this.view.setUint32(entry + 16, offset, true);
      this.view.setUint32(entry + 20, bytes.length, true);
      this.view.setUint32(entry + 24, flags, true);
      this.bytes.set(bytes, at + offset);
      offset += Math.ceil(bytes.length / 8) * 8;
    }
  }

  /**
   * Leaves changes of pages of 4 KiB in the log, an entry each, instead of in their places.
   *
   * @param start Where in the log the first entry is.
   */
  leaveInLog(
    changes: readonly { readonly at: number; readonly page: Uint8Array | null }[],
    { start = 0, sequence = 9n }: { start?: number; sequence?: bigint } = {},
  ): void {
    const guid = "99999999-8888-4777-8666-555555555555";
    let at = start;
    for (const { at: offset, page } of changes) {
      const length = page === null ? 4096 : 8192;
      const entry = new Uint8Array(length);
      const view = new DataView(entry.buffer);
      entry.set(new TextEncoder().encode("loge"));
      view.setUint32(8, length, true);
      view.setUint32(12, start, true);
      view.setBigUint64(16, sequence, true);
      view.setUint32(24, 1, true);
      entry.set(guidBytes(guid), 32);
      view.setBigUint64(48, BigInt(this.bytes.length), true);
      view.setBigUint64(56, BigInt(this.bytes.length), true);
      entry.set(new TextEncoder().encode(page === null ? "zero" : "desc"), 64);
      if (page === null) view.setBigUint64(72, 4096n, true);
      else {
        entry.set(page.subarray(4092), 68);
        entry.set(page.subarray(0, 8), 72);
        entry.set(page, 4096);
        entry.set(new TextEncoder().encode("data"), 4096);
        view.setUint32(4100, Number(sequence >> 32n), true);
        view.setUint32(8188, Number(sequence & 0xffffffffn), true);
      }
      view.setBigUint64(80, BigInt(offset), true);
      view.setBigUint64(88, sequence, true);
      view.setUint32(4, crc32c(entry), true);
      for (let i = 0; i < length; i++) this.bytes[this.logAt + (at + i) % MIB] = entry[i];
      at = (at + length) % MIB;
      sequence++;
    }
    this.putHeaders(guid);
  }
}

function locatorOf({ path, dataGuid }: { path: string; dataGuid: string }): Uint8Array {
  const wide = (text: string): Uint8Array =>
    new Uint8Array(Uint16Array.from(text, (c) => c.charCodeAt(0)).buffer);
  const entries = [
    ["parent_linkage", `{${dataGuid}}`],
    ["relative_path", `.\\${path}`],
    ["absolute_win32_path", `C:\\disks\\${path}`],
  ].map(([key, value]) => [wide(key), wide(value)]);
  const bytes = new Uint8Array(4096);
  const view = new DataView(bytes.buffer);
  bytes.set(guidBytes("b04aefb7-d19e-4a81-b789-25b8e9445913"));
  view.setUint16(18, entries.length, true);
  let at = 20 + 12 * entries.length;
  for (const [i, [key, value]] of entries.entries()) {
    view.setUint32(20 + 12 * i, at, true);
    bytes.set(key, at);
    view.setUint32(24 + 12 * i, at + key.length, true);
    bytes.set(value, at + key.length);
    view.setUint16(28 + 12 * i, key.length, true);
    view.setUint16(30 + 12 * i, value.length, true);
    at += key.length + value.length;
  }
  return bytes.subarray(0, at);
}
