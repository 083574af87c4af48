import { statfs } from "node:fs/promises";

/** The room of the filesystem that a file is on. */
export interface Room {
  /** Where it is mounted; the file itself for a block device, which is all of its room, or when it is not known. */
  readonly mount: string;
  /** Null when it is not known. */
  readonly freeBytes: number | null;
}

/** How long to wait for a filesystem, unless the caller says otherwise: a server may hang. */
const ROOM_TIMEOUT_MS = 1_000;
/** Files that are looked at at once: each takes a thread of the runtime, for long where a server hangs. */
const AT_ONCE = 4;

/** The topmost folder above a file that is on the same filesystem. */
async function mountOf(path: string): Promise<string> {
  let at = await Deno.realPath(path);
  const { dev } = await Deno.stat(at);
  while (at !== "/") {
    const above = at.slice(0, at.lastIndexOf("/")) || "/";
    if ((await Deno.stat(above)).dev !== dev) return at;
    at = above;
  }
  return at;
}

async function lookAtRoom(path: string): Promise<Room> {
  if ((await Deno.stat(path)).isBlockDevice) return { mount: path, freeBytes: null };
  const { bavail, bsize } = await statfs(path);
  return { mount: await mountOf(path), freeBytes: bavail * bsize };
}

/** Looks for the room that there is for files, and waits for no filesystem that hangs. */
export class Rooms {
  readonly #timeoutMs: number;
  readonly #look: (path: string) => Promise<Room>;
  /** Looks that have not ended. */
  readonly #pending = new Set<string>();

  constructor({ timeoutMs = ROOM_TIMEOUT_MS, look = lookAtRoom }: {
    timeoutMs?: number;
    look?: (path: string) => Promise<Room>;
  } = {}) {
    this.#timeoutMs = timeoutMs;
    this.#look = look;
  }

  /** The room that there is for a file. */
  async of(path: string): Promise<Room> {
    const unknown: Room = { mount: path, freeBytes: null };
    if (this.#pending.has(path) || this.#pending.size >= AT_ONCE) return unknown;
    this.#pending.add(path);
    const looked = this.#look(path).catch(() => unknown).finally(() => this.#pending.delete(path));
    const late = Promise.withResolvers<Room>();
    const timer = setTimeout(() => late.resolve(unknown), this.#timeoutMs);
    const room = await Promise.race([looked, late.promise]);
    clearTimeout(timer);
    return room;
  }
}
