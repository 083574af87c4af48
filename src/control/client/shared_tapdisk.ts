import { Errno, SystemError, systemError } from "../../../ffi/errno.ts";
import { closeFile, O_RDONLY, openFile, tryLockExclusive } from "../../../ffi/files.ts";
import { POLLIN, waitForDescriptors } from "../../../ffi/poll.ts";
import { isAlive } from "../../../ffi/process.ts";
import { encodePlain, MessageType } from "../protocol/message.ts";
import { namesIn, numberAfter, prepareFolders, requireOwnFolder, sharedFolder } from "../paths.ts";
import { sharingTerms, tapdiskSettings } from "../settings.ts";
import { TapdiskError, withConnection } from "./connection.ts";
import { spawnTapdisk } from "./spawn.ts";

/** How long other callers may take; then a process too many is better than none. */
const LOCK_WAIT_MS = 10_000;
const LOCK_AGAIN_MS = 5;
/** How long a tapdisk may take to answer; one that hangs must not stop all new disks. */
const RESERVE_TIMEOUT_MS = 500;

/** Whether a tapdisk keeps a place for a disk. One that has ended is forgotten. */
function hasRoom(pid: number): boolean {
  try {
    withConnection(pid, RESERVE_TIMEOUT_MS, (connection) => {
      connection.send(encodePlain(MessageType.RESERVE, 0));
      connection.expect(MessageType.RESERVE_RSP, `Cannot get a place in tapdisk ${pid}`);
    });
    return true;
  } catch (error) {
    const refused = error instanceof TapdiskError;
    if (!refused && !isAlive(pid)) forgetShared(pid);
    return false;
  }
}

/** The file of a tapdisk that takes disks of several callers. */
function fileOf(pid: number): string {
  return `${sharedFolder()}/${pid}`;
}

function forgetShared(pid: number): void {
  try {
    Deno.removeSync(fileOf(pid));
  } catch {
    // It was removed meanwhile.
  }
}

function termsOf(pid: number): string | null {
  try {
    return Deno.readTextFileSync(fileOf(pid));
  } catch {
    return null;
  }
}

/** A tapdisk with a place for a disk of this caller, which is kept; null when none has one. */
function reserveTapdisk(): number | null {
  const terms = sharingTerms();
  const pids = namesIn(sharedFolder()).map((name) => numberAfter(name, "") ?? 0)
    .filter((pid) => pid > 0).sort((a, b) => a - b);
  return pids.find((pid) => termsOf(pid) === terms && hasRoom(pid)) ?? null;
}

function prepareShared(): void {
  prepareFolders();
  const folder = sharedFolder();
  requireOwnFolder(folder);
  try {
    Deno.mkdirSync(folder, { recursive: true, mode: 0o700 });
  } catch (error) {
    throw systemError(error, `Cannot create the folder ${folder}`);
  }
}

/** Calls `work` while no other caller looks for room, or starts a process for want of it. */
async function withSharedLocked<Result>(work: () => Promise<Result>): Promise<Result> {
  const folder = openFile(sharedFolder(), O_RDONLY);
  try {
    const untilMs = performance.now() + LOCK_WAIT_MS;
    while (!tryLockExclusive(folder) && performance.now() < untilMs) {
      // The first timer of the runtime takes milliseconds of a processor; nothing else is to be done here.
      waitForDescriptors([], POLLIN, LOCK_AGAIN_MS);
    }
    return await work();
  } finally {
    closeFile(folder);
  }
}

/**
 * A tapdisk for one more disk: a new one, or with `BLKTAP_DISKS_PER_PROCESS` one that has room. Throws
 * `SystemError`, `TapdiskError`.
 *
 * @returns Its process number.
 */
export async function tapdiskForDisk(): Promise<number> {
  if (tapdiskSettings().disksPerProcess === 1) return await spawnTapdisk();
  prepareShared();
  return await withSharedLocked(async () =>
    reserveTapdisk() ?? await spawnTapdisk({ shared: true })
  );
}

/** Tells callers on the same terms that this process takes their disks. Throws `SystemError`. */
export function announceShared(): void {
  prepareShared();
  const path = fileOf(Deno.pid);
  try {
    // Another process reads it whole or not at all.
    Deno.writeTextFileSync(`${path}.new`, sharingTerms(), { mode: 0o600 });
    Deno.renameSync(`${path}.new`, path);
  } catch (error) {
    throw new SystemError(Errno.EIO, `Cannot write ${path}`, { file: path, cause: error });
  }
}

/** This process takes no more disks of others. */
export function withdrawShared(): void {
  forgetShared(Deno.pid);
}
