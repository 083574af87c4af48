import { ImageFormatError } from "../../files/format_error.ts";
import type { StorageFile } from "../../files/storage.ts";
import type { Header } from "../format/header.ts";

/** Bytes of the fixed part of an entry of the snapshot table. */
const ENTRY_BYTES = 40;
/** The most bytes of extra data that are accepted, and of the whole table. */
const MAX_EXTRA_BYTES = 1024;
const MAX_TABLE_BYTES = 64 << 20;

/** An internal snapshot. */
export interface InternalSnapshot {
  readonly id: string;
  readonly name: string;
  readonly l1Offset: number;
  readonly l1Entries: number;
}

/** The snapshot table. */
export interface SnapshotTable {
  readonly snapshots: readonly InternalSnapshot[];
  readonly offsetBytes: number;
  /** 0 without snapshots. */
  readonly lengthBytes: number;
}

/** Reads the snapshot table. Throws `ImageFormatError`. */
export function readSnapshotTable(file: StorageFile, header: Header): SnapshotTable {
  const offsetBytes = Number(header.snapshotsOffset);
  const snapshots: InternalSnapshot[] = [];
  let at = offsetBytes;
  for (let index = 0; index < header.nbSnapshots; index++) {
    const entry = new Uint8Array(ENTRY_BYTES);
    const isWhole = file.readAt(entry, at) === ENTRY_BYTES;
    const view = new DataView(entry.buffer);
    const idBytes = view.getUint16(12, false);
    const nameBytes = view.getUint16(14, false);
    const extraBytes = view.getUint32(36, false);
    const lengthBytes = Math.ceil((ENTRY_BYTES + extraBytes + idBytes + nameBytes) / 8) * 8;
    const isInside = at + lengthBytes - offsetBytes <= MAX_TABLE_BYTES;
    if (!isWhole || extraBytes > MAX_EXTRA_BYTES || !isInside) {
      throw new ImageFormatError(file.path, "QCOW2", {
        field: `snapshots[${index}]`,
        offsetBytes: at,
        value: isWhole ? `${lengthBytes} bytes` : "nothing",
        problem: isWhole ? "is longer than is accepted" : "lies past the end of the file",
      });
    }
    const text = new Uint8Array(idBytes + nameBytes);
    file.readAt(text, at + ENTRY_BYTES + extraBytes);
    snapshots.push({
      id: new TextDecoder().decode(text.subarray(0, idBytes)),
      name: new TextDecoder().decode(text.subarray(idBytes)),
      l1Offset: Number(view.getBigUint64(0, false)),
      l1Entries: view.getUint32(8, false),
    });
    at += lengthBytes;
  }
  return { snapshots, offsetBytes, lengthBytes: at - offsetBytes };
}
