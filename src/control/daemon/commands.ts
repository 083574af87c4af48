import type { Done } from "../../../ffi/errno.ts";
import { hideMemory } from "../../../ffi/process.ts";
import { DiskKey } from "../../vhd/key.ts";
import type { Devices } from "./devices.ts";
import { encodeNode, encodePid } from "../protocol/answers.ts";
import { encodeDiskInfo } from "../protocol/disk_info.ts";
import { encodeListEntry } from "../protocol/list.ts";
import { ALL_MINORS, encodePlain, messageCookie, MessageType } from "../protocol/message.ts";
import { decodeOpen, decodeResume, takeKey } from "../protocol/open_request.ts";
import { decodePauseTimeoutMs } from "../protocol/pause.ts";
import { decodeSnapshot, encodeSnapshotReply } from "../protocol/snapshot.ts";
import { encodeStatisticsHead, formatStatistics } from "../protocol/statistics.ts";
import { decodeWriteLogRequest, encodeWriteLogHead } from "../protocol/write_log.ts";
import { type Command, type CommandTable, errorReply } from "./server.ts";

/** A question, answered at once. */
function question(
  answer: (request: Uint8Array<ArrayBuffer>, minor: number) => Uint8Array<ArrayBuffer>,
): Command {
  return {
    exclusive: false,
    run: (request, reply) => reply(answer(request, messageCookie(request))),
  };
}

/** A change that is over when `change` returns. */
function change(
  change: (request: Uint8Array<ArrayBuffer>, minor: number) => Uint8Array<ArrayBuffer>,
): Command {
  return { ...question(change), exclusive: true };
}

/** A change that is over when it calls back; its answer carries nothing. */
function longChange(
  response: number,
  start: (minor: number, done: Done, request: Uint8Array<ArrayBuffer>) => void | (() => void),
  scheduling: Pick<Command, "preempts" | "cancellable"> = {},
): Command {
  return {
    exclusive: true,
    ...scheduling,
    run(request, reply): void | (() => void) {
      const minor = messageCookie(request);
      const done: Done = (error) => {
        reply(error === null ? encodePlain(response, minor) : errorReply(request, error));
      };
      return start(minor, done, request);
    },
  };
}

function concat(parts: readonly Uint8Array[]): Uint8Array<ArrayBuffer> {
  const whole = new Uint8Array(parts.reduce((length, part) => length + part.length, 0));
  let at = 0;
  for (const part of parts) {
    whole.set(part, at);
    at += part.length;
  }
  return whole;
}

function listReply(devices: Devices, cookie: number): Uint8Array<ArrayBuffer> {
  const all = devices.list();
  const entries = all.map(({ minor, state, name }, index) =>
    encodeListEntry(cookie, { count: all.length - index, minor, state, path: name })
  );
  const end = encodeListEntry(cookie, { count: 0, minor: -1, state: 0, path: "" });
  return concat([...entries, end]);
}

function statisticsReply(devices: Devices, cookie: number): Uint8Array<ArrayBuffer> {
  const value = cookie === ALL_MINORS
    ? devices.list().map(({ minor }) => devices.statistics(minor))
    : devices.statistics(cookie);
  const text = new TextEncoder().encode(formatStatistics(value));
  return concat([encodeStatisticsHead(cookie, text.length), text]);
}

function writeLogReply(
  devices: Devices,
  request: Uint8Array,
  minor: number,
): Uint8Array<ArrayBuffer> {
  const log = devices.writeLog(minor);
  const pages = log.pages();
  if (decodeWriteLogRequest(request)) log.clear();
  const head = { sectors: log.sectors, lengthBytes: pages.length };
  return concat([encodeWriteLogHead(minor, head), pages]);
}

/** The key that came with an `open`, in memory that no other process can read. */
function diskKey(request: Uint8Array): DiskKey | undefined {
  const bytes = takeKey(request);
  if (bytes === null) return undefined;
  try {
    hideMemory();
    return new DiskKey(bytes);
  } finally {
    bytes.fill(0);
  }
}

/** Opens an image, and answers with the disk. */
function openCommand(devices: Devices): Command {
  return {
    exclusive: true,
    run(request, reply): () => void {
      const minor = messageCookie(request);
      const key = diskKey(request);
      try {
        return devices.open(minor, { request: decodeOpen(request), key }, (error, disk) => {
          if (error !== null) key?.wipe();
          reply(
            error === null
              ? encodeDiskInfo(MessageType.OPEN_RSP, minor, disk)
              : errorReply(request, error),
          );
        });
      } catch (error) {
        key?.wipe();
        throw error;
      }
    },
  };
}

/** Makes a snapshot, and answers with what was made. */
function snapshotCommand(devices: Devices): Command {
  return {
    exclusive: true,
    cancellable: true,
    run(request, reply): () => void {
      const { minor, path, rename, timeoutSeconds } = decodeSnapshot(request);
      const timeoutMs = timeoutSeconds === 0 ? Infinity : timeoutSeconds * 1000;
      const options = { path, rename, timeoutMs };
      return devices.snapshot(minor, options, (error, made) => {
        if (error !== null) return reply(errorReply(request, error));
        const { stallMs, parent, name: image } = made;
        reply(encodeSnapshotReply(minor, { stallMs, parent, image }));
      });
    },
  };
}

/** What a tapdisk does for each message that it knows. */
export function controlCommands(devices: Devices): CommandTable {
  const close = (force: boolean) =>
    longChange(
      MessageType.CLOSE_RSP,
      (minor, done) => devices.close(minor, { force }, done),
      { preempts: true },
    );
  const resume = longChange(
    MessageType.RESUME_RSP,
    (minor, done, request) => devices.resume(minor, decodeResume(request), done),
  );
  const pause = longChange(
    MessageType.PAUSE_RSP,
    (minor, done, request) =>
      devices.pause(minor, { timeoutMs: decodePauseTimeoutMs(request) }, done),
    { cancellable: true },
  );
  return new Map<number, Command>([
    [MessageType.PID, question((_request, cookie) => encodePid(cookie, Deno.pid))],
    [MessageType.LIST, question((_request, cookie) => listReply(devices, cookie))],
    [MessageType.STATS, question((_request, cookie) => statisticsReply(devices, cookie))],
    [
      MessageType.WRITE_LOG,
      question((request, minor) => writeLogReply(devices, request, minor)),
    ],
    [
      MessageType.DISK_INFO,
      question((_request, minor) =>
        encodeDiskInfo(MessageType.DISK_INFO_RSP, minor, devices.diskInfo(minor))
      ),
    ],
    [MessageType.NODE, question((_request, minor) => encodeNode(minor, devices.node(minor)))],
    [
      MessageType.ATTACH,
      change((_request, minor) => {
        devices.attach(minor);
        return encodePlain(MessageType.ATTACH_RSP, minor);
      }),
    ],
    [
      MessageType.DETACH,
      change((_request, minor) => {
        devices.detach(minor);
        return encodePlain(MessageType.DETACH_RSP, minor);
      }),
    ],
    [MessageType.OPEN, openCommand(devices)],
    [MessageType.PAUSE, pause],
    [MessageType.SNAPSHOT, snapshotCommand(devices)],
    [MessageType.RESUME, resume],
    [MessageType.CLOSE, close(false)],
    [MessageType.FORCE_SHUTDOWN, close(true)],
  ]);
}
