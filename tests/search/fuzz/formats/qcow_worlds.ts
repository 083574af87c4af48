import { deflateRawSync } from "node:zlib";
import { backingNameOf } from "../../../../src/qcow/backing.ts";
import { checkQcow } from "../../../../src/qcow/check.ts";
import { encodeHeader, l1Entries, type QcowHeader } from "../../../../src/qcow/format.ts";
import { stampedSectors } from "../../../support/sim.ts";
import { putFile } from "../../../support/vhd.ts";
import { DISK_BYTES, DISK_SECTORS, type Field, numbers, type World, written } from "./world.ts";

const COMPRESSED = 1n << 63n;
const MOST_ENTRIES = 12;

interface Shape {
  readonly clusterBits: number;
  readonly l2Bits: number;
  readonly hasBacking?: boolean;
  readonly packed?: boolean;
}

const SHAPES: readonly Shape[] = [
  { clusterBits: 12, l2Bits: 9 },
  { clusterBits: 9, l2Bits: 6 },
  { clusterBits: 16, l2Bits: 6, packed: true },
  { clusterBits: 9, l2Bits: 12, hasBacking: true },
];

/** Compresses the first clusters of a table in their places. */
function pack(bytes: Uint8Array<ArrayBuffer>, table: number, clusterBits: number): void {
  const view = new DataView(bytes.buffer);
  for (let i = 0; i < 3; i++) {
    const place = Number(view.getBigUint64(table + 8 * i));
    if (place === 0) continue;
    const packed = deflateRawSync(bytes.slice(place, place + 2 ** clusterBits));
    bytes.set(packed, place);
    const length = BigInt(packed.length) << BigInt(63 - clusterBits);
    view.setBigUint64(table + 8 * i, COMPRESSED | length | BigInt(place));
  }
}

function fieldsOf(bytes: Uint8Array<ArrayBuffer>, header: QcowHeader, nameBytes: number): Field[] {
  const view = new DataView(bytes.buffer);
  const l1 = numbers("l1", header.l1OffsetBytes, l1Entries(header), 8);
  const fields = [
    ...numbers("magic", 0, 1, 4),
    ...numbers("version", 4, 1, 4),
    ...numbers("backing_file_offset", 8, 1, 8),
    ...numbers("backing_file_size", 16, 1, 4),
    ...numbers("mtime", 20, 1, 4),
    ...numbers("size", 24, 1, 8),
    ...numbers("cluster_bits", 32, 1, 1),
    ...numbers("l2_bits", 33, 1, 1),
    ...numbers("padding", 34, 1, 2),
    ...numbers("crypt_method", 36, 1, 4),
    ...numbers("l1_table_offset", 40, 1, 8),
    ...numbers("name", 48, nameBytes, 1),
    ...l1.slice(0, 8),
    ...l1.slice(-1),
  ];
  const tables = l1.map(({ at }) => Number(view.getBigUint64(at))).filter((at) => at > 0);
  for (const [i, table] of tables.slice(0, 3).entries()) {
    const entries = numbers(`l2[${i}]`, table, 2 ** header.l2Bits, 8);
    const isUsed = ({ at }: Field): boolean => view.getBigUint64(at) !== 0n;
    fields.push(...entries.filter(isUsed).slice(0, MOST_ENTRIES), ...entries.slice(-2));
  }
  return fields;
}

function worldOf(folder: string, { clusterBits, l2Bits, hasBacking, packed }: Shape): World {
  const path = `${folder}/disk.qcow`;
  const image = `qcow:${path}`;
  const base = `${folder}/base.raw`;
  const name = new TextEncoder().encode(
    hasBacking ? backingNameOf({ path: base, format: "raw" }) : "",
  );
  const others = new Map<string, Uint8Array<ArrayBuffer>>();
  if (hasBacking) others.set(base, stampedSectors(0, DISK_SECTORS - 100, 3).slice());
  const header: QcowHeader = {
    backingOffsetBytes: hasBacking ? 48 : 0,
    backingLengthBytes: name.length,
    mtime: 0,
    sizeBytes: DISK_BYTES,
    clusterBits,
    l2Bits,
    cryptMethod: 0,
    l1OffsetBytes: Math.ceil((48 + name.length) / 8) * 8,
  };
  const end = header.l1OffsetBytes + 8 * l1Entries(header);
  const bytes = written(image, path, (disk) => {
    for (const [other, content] of others) putFile(disk, other, content);
    const front = new Uint8Array(end);
    front.set(encodeHeader(header));
    front.set(name, 48);
    putFile(disk, path, front);
  });
  const table = Number(new DataView(bytes.buffer).getBigUint64(header.l1OffsetBytes));
  if (packed) pack(bytes, table, clusterBits);
  return {
    name: `qcow ${clusterBits} ${l2Bits}${hasBacking ? " backed" : ""}${packed ? " packed" : ""}`,
    image,
    path,
    bytes,
    others,
    fields: fieldsOf(bytes, header, name.length),
    cuts: [0, 48, header.l1OffsetBytes, end, table, table + 8 * 2 ** l2Bits, bytes.length],
    sealed: [],
    canWrite: true,
    isCompressed: packed === true,
    check(storage): string | null {
      const { findings } = checkQcow(path, { storage });
      return findings.find(({ severity }) => severity === "error")?.message ?? null;
    },
  };
}

/** The worlds, each in a folder of its own. */
export function qcowWorlds(folder: string): World[] {
  return SHAPES.map((shape, i) => worldOf(`${folder}/qcow-${i}`, shape));
}
