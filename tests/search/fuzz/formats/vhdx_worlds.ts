import { openVhdx } from "../../../../src/vhdx/image.ts";
import { stampedSectors } from "../../../support/sim.ts";
import { MadeVhdx } from "../../../support/vhdx.ts";
import { DISK_BYTES, type Field, numbers, type World } from "./world.ts";

const MIB = 1 << 20;
/** A log is read as a whole, which takes time. */
const LOG_BYTES = 65536;
const HEADERS = [65536, 131072];
const REGION_TABLES = [196608, 262144];
const GUIDS = [1, 2].map((n) => `aaaaaaaa-0000-4000-8000-00000000000${n}`);

function little(name: string, at: number, count: number, width: 1 | 2 | 4 | 8): Field[] {
  return numbers(name, at, count, width, true);
}

function headerFields(at: number): Field[] {
  return [
    ...little("header signature", at, 2, 4),
    ...little("header SequenceNumber", at + 8, 1, 8),
    ...little("header GUIDs", at + 16, 12, 4),
    ...little("header LogVersion", at + 64, 2, 2),
    ...little("header LogLength", at + 68, 1, 4),
    ...little("header LogOffset", at + 72, 1, 8),
  ];
}

function regionFields(at: number): Field[] {
  const entries = [0, 1].flatMap((i) => [
    ...little(`region[${i}] Guid`, at + 16 + 32 * i, 4, 4),
    ...little(`region[${i}] FileOffset`, at + 32 + 32 * i, 1, 8),
    ...little(`region[${i}] Length`, at + 40 + 32 * i, 2, 4),
  ]);
  return [...little("region table", at, 4, 4), ...entries];
}

function metadataFields(at: number, items: number): Field[] {
  const entries = Array.from({ length: items }, (_, i) => [
    ...little(`metadata[${i}] ItemId`, at + 32 + 32 * i, 4, 4),
    ...little(`metadata[${i}]`, at + 48 + 32 * i, 3, 4),
  ]);
  return [
    ...little("metadata signature", at, 2, 4),
    ...little("metadata EntryCount", at + 8, 2, 2),
    ...entries.flat(),
    ...little("items", at + 65536, 4, 8),
    ...little("items", at + 65536, 12, 4),
    ...little("locator", at + 65536 + 40, 60, 2),
  ];
}

function logFields(at: number): Field[] {
  return [
    ...little("log entry", at, 4, 4),
    ...little("log SequenceNumber", at + 16, 1, 8),
    ...little("log DescriptorCount", at + 24, 2, 4),
    ...little("log LogGuid", at + 32, 4, 4),
    ...little("log FlushedFileOffset", at + 48, 2, 8),
    ...little("descriptor", at + 64, 2, 4),
    ...little("descriptor", at + 72, 3, 8),
    ...little("log data", at + 4096, 2, 4),
    ...little("log data", at + 8184, 2, 4),
  ];
}

function worldOf(folder: string, hasParent: boolean): World {
  const path = `${folder}/disk.vhdx`;
  const shape = { sizeBytes: DISK_BYTES, blockBytes: MIB };
  const sectors = new Map([3, 700, 1999].map((sector) => [sector, stampedSectors(sector, 1, 5)]));
  const parent = hasParent ? { path: "base.vhdx", dataGuid: GUIDS[0] } : undefined;
  const image = new MadeVhdx({ ...shape, dataGuid: GUIDS[1], sectors, parent });
  const page = image.bytes.slice(image.batAt, image.batAt + 4096);
  image.leaveInLog([{ at: image.batAt, page }, { at: image.batAt + 4096, page: null }]);
  for (const at of HEADERS) {
    image.view.setUint32(at + 68, LOG_BYTES, true);
    image.seal(at, 4096);
  }
  const { batAt, metadataAt, logAt, bytes } = image;
  const others = new Map<string, Uint8Array<ArrayBuffer>>();
  if (hasParent) {
    const base = new MadeVhdx({ ...shape, dataGuid: GUIDS[0], sectors });
    others.set(`${folder}/base.vhdx`, base.bytes);
  }
  return {
    name: `vhdx${hasParent ? " with a parent" : ""}`,
    image: `vhdx:${path}`,
    path,
    bytes,
    others,
    fields: [
      ...little("file signature", 0, 2, 4),
      ...HEADERS.flatMap(headerFields),
      ...REGION_TABLES.flatMap(regionFields),
      ...metadataFields(metadataAt, hasParent ? 6 : 5),
      ...little("bat", batAt, 4, 8),
      ...(hasParent ? little("bat of a bitmap", batAt + 8 * 4096, 2, 8) : []),
      ...(hasParent ? little("bitmap", 4 * MIB, 4, 8) : []),
      ...logFields(logAt),
      ...logFields(logAt + 8192),
    ],
    cuts: [0, 8, ...HEADERS, ...REGION_TABLES, ...[1, 2, 3, 4, 5, 6].map((n) => n * MIB)],
    sealed: [
      ...HEADERS.map((at) => ({ at, lengthBytes: 4096 })),
      ...REGION_TABLES.map((at) => ({ at, lengthBytes: 65536 })),
      { at: logAt, lengthBytes: 8192 },
      { at: logAt + 8192, lengthBytes: 4096 },
    ],
    canWrite: false,
    isCompressed: false,
    check(storage): null {
      openVhdx(path, { storage }).close();
      return null;
    },
  };
}

/** The worlds, each in a folder of its own. */
export function vhdxWorlds(folder: string): World[] {
  return [false, true].map((hasParent, i) => worldOf(`${folder}/vhdx-${i}`, hasParent));
}
