/**
 * Header extensions: optional sections behind the header, each with a type, a length and data.
 *
 * @module
 */

/** Types of header extensions. */
export const ExtensionType = {
  End: 0,
  BackingFormat: 0xe2792aca,
  FeatureNames: 0x6803f857,
  Bitmaps: 0x23852875,
  CryptoHeader: 0x0537be77,
  DataFile: 0x44415441,
  /** XCP-ng's: its first byte says whether storage managers show the image. */
  Hidden: 0x76617465,
} as const;

/** One header extension. */
export interface Extension {
  readonly type: number;
  readonly data: Uint8Array<ArrayBuffer>;
}

const HEAD_BYTES = 8;

/** Why the extensions of a header cannot be used, as the end of a sentence. */
export class ExtensionFault extends Error {
  override readonly name: string = "ExtensionFault";

  constructor(readonly offsetBytes: number, problem: string) {
    super(problem);
  }
}

/**
 * Parses the extensions between two offsets of the first cluster. Without an end mark they end at
 * `endBytes`.
 *
 * @throws {ExtensionFault} for one that goes beyond the area.
 */
export function decodeExtensions(
  bytes: Uint8Array<ArrayBuffer>,
  startBytes: number,
  endBytes: number,
): Extension[] {
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  const extensions: Extension[] = [];
  for (let at = startBytes; at + HEAD_BYTES <= endBytes;) {
    const type = view.getUint32(at, false);
    const length = view.getUint32(at + 4, false);
    if (type === ExtensionType.End) break;
    const data = at + HEAD_BYTES;
    if (length > endBytes - data) {
      throw new ExtensionFault(at, `has ${length} bytes and goes beyond the header's cluster`);
    }
    extensions.push({ type, data: bytes.slice(data, data + length) });
    at = data + Math.ceil(length / 8) * 8;
  }
  return extensions;
}

/** Encodes extensions, with the mark of the end. */
export function encodeExtensions(extensions: readonly Extension[]): Uint8Array<ArrayBuffer> {
  const padded = (length: number): number => HEAD_BYTES + Math.ceil(length / 8) * 8;
  const total = extensions.reduce((sum, { data }) => sum + padded(data.length), HEAD_BYTES);
  const bytes = new Uint8Array(total);
  const view = new DataView(bytes.buffer);
  let at = 0;
  for (const { type, data } of extensions) {
    view.setUint32(at, type, false);
    view.setUint32(at + 4, data.length, false);
    bytes.set(data, at + HEAD_BYTES);
    at += padded(data.length);
  }
  return bytes;
}

/** The bitmaps extension. */
export interface BitmapsExtension {
  readonly bitmaps: number;
  readonly directoryBytes: number;
  readonly directoryOffset: number;
}

/** Decodes the bitmaps extension; null when it has another length. */
export function decodeBitmapsExtension(data: Uint8Array<ArrayBuffer>): BitmapsExtension | null {
  if (data.length !== 24) return null;
  const view = new DataView(data.buffer, data.byteOffset, data.byteLength);
  return {
    bitmaps: view.getUint32(0, false),
    directoryBytes: Number(view.getBigUint64(8, false)),
    directoryOffset: Number(view.getBigUint64(16, false)),
  };
}

/** A feature, as the table of feature names has it. */
export interface FeatureName {
  /** 0 for incompatible, 1 for compatible, 2 for autoclear features. */
  readonly kind: number;
  readonly bit: number;
  readonly name: string;
}

const FEATURE_NAME_BYTES = 48;

/** Decodes the table of feature names. Bytes behind the last whole entry are ignored. */
export function decodeFeatureNames(data: Uint8Array): FeatureName[] {
  const names: FeatureName[] = [];
  for (let at = 0; at + FEATURE_NAME_BYTES <= data.length; at += FEATURE_NAME_BYTES) {
    const text = data.subarray(at + 2, at + FEATURE_NAME_BYTES);
    const end = text.indexOf(0);
    const name = new TextDecoder().decode(end < 0 ? text : text.subarray(0, end));
    names.push({ kind: data[at], bit: data[at + 1], name });
  }
  return names;
}

/** Encodes the table of feature names. */
export function encodeFeatureNames(names: readonly FeatureName[]): Uint8Array<ArrayBuffer> {
  const bytes = new Uint8Array(names.length * FEATURE_NAME_BYTES);
  for (const [i, { kind, bit, name }] of names.entries()) {
    bytes[i * FEATURE_NAME_BYTES] = kind;
    bytes[i * FEATURE_NAME_BYTES + 1] = bit;
    bytes.set(new TextEncoder().encode(name).subarray(0, 46), i * FEATURE_NAME_BYTES + 2);
  }
  return bytes;
}
