/**
 * Which tapback serves which devices: two of them for the same device would connect and disconnect its
 * ring in turns. A tapback holds the lock of a file for as long as it runs.
 *
 * @module
 */
import { Errno, SystemError } from "../../ffi/errno.ts";
import {
  closeFile,
  O_CREAT,
  O_RDWR,
  openFile,
  readAt,
  truncateFile,
  tryLockExclusive,
  writeAt,
} from "../../ffi/files.ts";
import { controlFolder, namesIn, prepareFolders } from "../control/paths.ts";

/** How long another tapback may hold a lock only to look at it. */
const LOOK_MS = 500;
const LOOK_AGAIN_MS = 10;
/** Room for the number of a process. */
const PID_BYTES = 16;

/** The devices that a tapback serves: of a type, and of one domain or (null) of all. */
export interface Served {
  readonly type: string;
  readonly domain: number | null;
}

function lockName({ type, domain }: Served): string {
  return `tapback-${type}${domain === null ? "" : `-${domain}`}.lock`;
}

/** The numbers of processes in the files are for people: the locks tell who runs. */
function pidIn(file: number): string {
  const bytes = new Uint8Array(PID_BYTES);
  const text = new TextDecoder().decode(bytes.subarray(0, readAt(file, bytes, 0))).trim();
  return /^\d+$/.test(text) ? `process ${text}` : "another process";
}

function pause(ms: number): void {
  Atomics.wait(new Int32Array(new SharedArrayBuffer(4)), 0, 0, ms);
}

/** Locks a file. Throws `SystemError`: EBUSY when a tapback runs that has it. */
function lock(name: string, { type }: Served): number {
  const file = openFile(`${controlFolder()}/${name}`, O_RDWR | O_CREAT, 0o600);
  try {
    const untilMs = performance.now() + LOOK_MS;
    while (!tryLockExclusive(file)) {
      if (performance.now() > untilMs) {
        const what = `Cannot serve devices of type ${type}: ${pidIn(file)} is a tapback for them`;
        throw new SystemError(Errno.EBUSY, what, { message: what });
      }
      pause(LOOK_AGAIN_MS);
    }
    return file;
  } catch (error) {
    closeFile(file);
    throw error;
  }
}

/**
 * Makes this process the one that serves these devices, until it ends.
 *
 * @returns The lock, an open file.
 * @throws {SystemError} EBUSY when another tapback serves some of them.
 */
export function lockInstance(served: Served): number {
  prepareFolders();
  const { type, domain } = served;
  // Each tapback takes this one first, so that no other can begin meanwhile.
  const all = lock(lockName({ type, domain: null }), served);
  let mine = all;
  try {
    if (domain === null) refuseOthers(served);
    else mine = lock(lockName(served), served);
  } catch (error) {
    closeFile(all);
    throw error;
  }
  if (mine !== all) closeFile(all);
  truncateFile(mine, 0);
  writeAt(mine, new TextEncoder().encode(`${Deno.pid}\n`), 0);
  return mine;
}

/** Throws `SystemError` (EBUSY) when a tapback serves one of the domains. */
function refuseOthers(served: Served): void {
  const ofDomain = /^\d+\.lock$/;
  const start = `tapback-${served.type}-`;
  for (const name of namesIn(controlFolder())) {
    if (!name.startsWith(start) || !ofDomain.test(name.slice(start.length))) continue;
    closeFile(lock(name, served));
  }
}
