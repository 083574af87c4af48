import { closeFile, O_RDONLY, openFile, readAt } from "./files.ts";
import { memoryAt, pointerAddress } from "./libc.ts";
import { lockPages, noteNotLocked } from "./secret.ts";
import { Errno } from "./errno.ts";

/** A range of addresses that this process can read and write. */
interface Range {
  readonly start: number;
  readonly end: number;
}

const MAPS = "/proc/self/maps";
const MAPS_CHUNK_BYTES = 65536;

/** The text of /proc/self/maps. The runtime would want the right to read everything for it. */
function readMaps(): string {
  const fd = openFile(MAPS, O_RDONLY);
  try {
    let text = "";
    const chunk = new Uint8Array(MAPS_CHUNK_BYTES);
    for (let at = 0;;) {
      const got = readAt(fd, chunk, at);
      if (got === 0) return text;
      text += new TextDecoder("latin1").decode(chunk.subarray(0, got));
      at += got;
    }
  } finally {
    closeFile(fd);
  }
}

/** The writable memory of this process. */
function writableMemory(): Range[] {
  const lines = readMaps().matchAll(
    /^([0-9a-f]+)-([0-9a-f]+) rw-p /gm,
  );
  return [...lines].map(([, start, end]) => ({
    start: parseInt(start, 16),
    end: parseInt(end, 16),
  }));
}

/** The bytes from an address on, at most so many; null when there is no writable memory. */
function bytesFrom(
  ranges: readonly Range[],
  address: number,
  mostBytes: number,
): Uint8Array | null {
  const range = ranges.find(({ start, end }) => address >= start && address < end);
  if (range === undefined) return null;
  return new Uint8Array(memoryAt(address, Math.min(mostBytes, range.end - address)));
}

/** Bytes of an EVP_CIPHER_CTX that are searched for pointers. It has 168 or 184. */
const CONTEXT_BYTES = 256;
/** More than the state of AES-XTS has: two expanded keys of 244 bytes, and some fields. */
const STATE_BYTES = 2048;
/** AES needs the last half of the key as it is, as the first round key for the tweak. */
const KEPT_BYTES = 16;

function contains(bytes: Uint8Array, part: Uint8Array): boolean {
  for (let at = bytes.indexOf(part[0]); at >= 0; at = bytes.indexOf(part[0], at + 1)) {
    if (part.every((byte, i) => bytes[at + i] === byte)) return true;
  }
  return false;
}

/** Finds and locks the state of one context; false when it is not found. */
function lockStateOf(ranges: readonly Range[], context: number, kept: Uint8Array): boolean {
  const fields = bytesFrom(ranges, context, CONTEXT_BYTES);
  if (fields === null) return false;
  const view = new DataView(fields.buffer, fields.byteOffset, fields.byteLength);
  let found = false;
  for (let at = 0; at + 8 <= fields.length; at += 8) {
    const pointer = Number(view.getBigUint64(at, true));
    const state = bytesFrom(ranges, pointer, STATE_BYTES);
    if (state === null || !contains(state, kept)) continue;
    lockPages(pointer, state.length);
    found = true;
  }
  return found;
}

/**
 * Locks the memory in which libcrypto keeps the expanded keys of AES-XTS. libcrypto has no function
 * that tells where this is, and none to allocate it elsewhere. But a field of the EVP_CIPHER_CTX points
 * to it in each version, and it contains the key of the tweak. The pages stay locked after the contexts
 * are freed: the heap has other data on them.
 *
 * @param contexts Each an EVP_CIPHER_CTX with the key.
 */
export function lockCipherState(
  contexts: readonly Deno.PointerValue[],
  key: Uint8Array<ArrayBuffer>,
): void {
  const ranges = writableMemory();
  const kept = key.subarray(key.length / 2, key.length / 2 + KEPT_BYTES);
  for (const context of contexts) {
    if (!lockStateOf(ranges, pointerAddress(context), kept)) noteNotLocked(Errno.EOPNOTSUPP);
  }
}
