import { type Done, Errno, SystemError } from "../../../ffi/errno.ts";
import type { Secret } from "../../../ffi/secret.ts";
import { DiskKey } from "../../vhd/key.ts";
import { type Actor, actorAt } from "./actor.ts";
import type { Device } from "./device.ts";
import type { Devices } from "./devices.ts";
import { encodeNode, encodePid } from "../protocol/answers.ts";
import { encodeDiskInfo, RING_FEATURES } from "../protocol/disk_info.ts";
import { decodeConnect, decodeGuestDevice } from "../protocol/guest_ring.ts";
import { decodeLimit, encodeLimitReply } from "../protocol/limit.ts";
import { encodeExplained } from "../protocol/explain.ts";
import { encodeListEntry } from "../protocol/list.ts";
import { ALL_MINORS, encodePlain, messageCookie, MessageType } from "../protocol/message.ts";
import { decodeOpen, decodeResume } from "../protocol/open_request.ts";
import { decodePauseTimeoutMs } from "../protocol/pause.ts";
import { decodeServe, decodeUnserve, encodeServeReply } from "../protocol/serve.ts";
import { decodeSnapshot, encodeSnapshotReply } from "../protocol/snapshot.ts";
import {
  encodeRequestsHead,
  encodeStatisticsHead,
  formatStatistics,
} from "../protocol/statistics.ts";
import { decodeWriteLogRequest, encodeWriteLogHead } from "../protocol/write_log.ts";
import { decodeTakeOver, decodeUpgrade, encodeUpgradeReply } from "../protocol/upgrade.ts";
import type { Upgrades } from "../handover/upgrades.ts";
import { type Command, type CommandTable, errorReply } from "./command.ts";

/** A question, answered at once. */
function question(
  answer: (request: Uint8Array<ArrayBuffer>, minor: number) => Uint8Array<ArrayBuffer>,
): Command {
  return {
    exclusive: false,
    run: (request, reply) => reply(answer(request, messageCookie(request))),
  };
}

/** A change that has ended when `change` returns. */
function change(
  change: (request: Uint8Array<ArrayBuffer>, minor: number) => Uint8Array<ArrayBuffer>,
): Command {
  return { ...question(change), exclusive: true };
}

/** A change of an attached device that has ended when it calls back; its answer has no fields. */
function longChange(
  devices: Devices,
  { verb, response, start, ...scheduling }: Omit<Command, "exclusive" | "run"> & {
    /** What is done to the minor, for the error's message. */
    readonly verb: string;
    readonly response: number;
    readonly start: (
      device: Device,
      done: Done,
      request: Uint8Array<ArrayBuffer>,
      by: Actor | null,
    ) => void | (() => void);
  },
): Command {
  return {
    exclusive: true,
    ...scheduling,
    run(request, reply, _key, connection): void | (() => void) {
      const minor = messageCookie(request);
      const done: Done = (error) =>
        reply(error === null ? encodePlain(response, minor) : errorReply(request, error));
      const by = connection?.open === true ? actorAt(connection.fd) : null;
      return start(devices.find(minor, verb), done, request, by);
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

function statisticsReply(cookie: number, texts: readonly string[]): Uint8Array<ArrayBuffer> {
  const whole = cookie === ALL_MINORS ? `[ ${texts.join(", ")} ]` : texts.join();
  const text = new TextEncoder().encode(whole);
  return concat([encodeStatisticsHead(cookie, text.length), text]);
}

/** Answers with the statistics of a device, or of all, for which requests of disks need not wait. */
function statisticsCommand(devices: Devices): Command {
  return {
    exclusive: false,
    run(request, reply): void {
      const cookie = messageCookie(request);
      const texts: string[] = [];
      const add = (device: Device): void => {
        texts.push(formatStatistics(device.statistics()));
      };
      if (cookie !== ALL_MINORS) {
        add(devices.find(cookie, "get the statistics of"));
        return reply(statisticsReply(cookie, texts));
      }
      devices.visit(add, (error) => {
        reply(error === null ? statisticsReply(cookie, texts) : errorReply(request, error));
      });
    },
  };
}

/** What SIGUSR1 logs of a disk: its state, and each open request, the oldest first. */
function requestsReply(devices: Devices, minor: number): Uint8Array<ArrayBuffer> {
  const lines = devices.find(minor, "get the requests of").report();
  const text = new TextEncoder().encode(JSON.stringify(lines));
  return concat([encodeRequestsHead(minor, text.length), text]);
}

function writeLogReply(
  devices: Devices,
  request: Uint8Array,
  minor: number,
): Uint8Array<ArrayBuffer> {
  const log = devices.find(minor, "get the log of").parts.vbd.writeLog;
  if (log === undefined) {
    const hint = "its image is not named log:TYPE:PATH";
    throw new SystemError(Errno.EINVAL, `Cannot get a log of minor ${minor} (${hint})`);
  }
  const pages = log.pages();
  if (decodeWriteLogRequest(request)) log.clear();
  const head = { sectors: log.sectors, lengthBytes: pages.length };
  return concat([encodeWriteLogHead(minor, head), pages]);
}

/** The key that came behind an `open`. */
function diskKey(secret: Secret | null): DiskKey | undefined {
  if (secret === null) return undefined;
  try {
    return new DiskKey(secret.bytes);
  } finally {
    secret.release();
  }
}

/** Traces a disk. The connection is the trace's from then on. */
function traceCommand(devices: Devices): Command {
  return {
    exclusive: false,
    run(request, _reply, _key, connection): void {
      if (connection !== null) devices.trace(messageCookie(request), connection);
    },
  };
}

/** Opens an image, and answers with the disk. */
function openCommand(devices: Devices): Command {
  return {
    exclusive: true,
    run(request, reply, secret): () => void {
      const minor = messageCookie(request);
      const key = diskKey(secret);
      try {
        const open = decodeOpen(request);
        const device = devices.find(minor, `open ${open.image} on`, Errno.EINVAL);
        return device.open({ request: open, key }, (error, disk) => {
          if (error !== null) key?.wipe();
          else if (key !== undefined) devices.keyInUse(minor);
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
      const { minor, path, rename, timeoutSeconds, childType } = decodeSnapshot(request);
      const timeoutMs = timeoutSeconds === 0 ? Infinity : timeoutSeconds * 1000;
      const options = { path, rename, timeoutMs, childType };
      const device = devices.find(minor, "make a snapshot of");
      return device.snapshot(options, (error, made) => {
        if (error !== null) return reply(errorReply(request, error));
        const { stallMs, parent, name: image } = made;
        reply(encodeSnapshotReply(minor, { stallMs, parent, image }));
      });
    },
  };
}

/**
 * Hands the disks over to a new process, and answers which; then this process ends. The new process asks
 * for the disks by the second command, which frames follow in place of an answer.
 */
function upgradeCommands(upgrades: Upgrades): [type: number, command: Command][] {
  const upgrading: Command = {
    exclusive: false,
    run(request, reply, _key, connection): void {
      upgrades.begin(decodeUpgrade(request), connection, (error, upgraded) =>
        reply(
          error === null
            ? encodeUpgradeReply(messageCookie(request), upgraded)
            : errorReply(request, error),
        ));
    },
  };
  const joining: Command = {
    exclusive: false,
    run(request, _reply, _key, connection): void {
      if (connection !== null) upgrades.join(connection, decodeTakeOver(request));
    },
  };
  return [[MessageType.UPGRADE, upgrading], [MessageType.TAKE_OVER, joining]];
}

/** The command for each message that a tapdisk carries out. */
export function controlCommands(devices: Devices, upgrades: Upgrades | null = null): CommandTable {
  const closing = (force: boolean) =>
    longChange(devices, {
      verb: "close",
      response: MessageType.CLOSE_RSP,
      preempts: true,
      announced(request): void {
        if (force) devices.hurryClose(messageCookie(request));
      },
      start: (device, done) => device.close({ force }, done),
    });
  const resuming = longChange(devices, {
    verb: "unpause",
    response: MessageType.RESUME_RSP,
    start: (device, done, request, by) => device.resume(decodeResume(request), done, by),
  });
  const pausing = longChange(devices, {
    verb: "pause",
    response: MessageType.PAUSE_RSP,
    cancellable: true,
    start: (device, done, request, by) =>
      device.pause({ timeoutMs: decodePauseTimeoutMs(request), by }, done),
  });
  const attaching = change((_request, minor) => {
    devices.attach(minor);
    return encodePlain(MessageType.ATTACH_RSP, minor);
  });
  const detaching = change((_request, minor) => {
    devices.detach(minor);
    return encodePlain(MessageType.DETACH_RSP, minor);
  });
  const connecting = change((request, minor) => {
    devices.connectRing(minor, decodeConnect(request));
    return encodePlain(MessageType.XENBLKIF_CONNECT_RSP, minor);
  });
  const serving = change((request, minor) => {
    const listen = devices.find(minor, "serve").serve(decodeServe(request));
    return encodeServeReply(minor, listen);
  });
  const unserving = change((request, minor) => {
    devices.find(minor, "stop serving").unserve(decodeUnserve(request));
    return encodePlain(MessageType.UNSERVE_RSP, minor);
  });
  // The guest may have gone: nothing that a disk does may delay this. The cookie says no minor.
  const disconnecting = question((request, cookie) => {
    devices.disconnectRing(decodeGuestDevice(request));
    return encodePlain(MessageType.XENBLKIF_DISCONNECT_RSP, cookie);
  });
  return new Map<number, Command>([
    ...questions(devices),
    [MessageType.XENBLKIF_CONNECT, connecting],
    [MessageType.XENBLKIF_DISCONNECT, disconnecting],
    [MessageType.ATTACH, attaching],
    [MessageType.DETACH, detaching],
    [MessageType.OPEN, openCommand(devices)],
    [MessageType.PAUSE, pausing],
    [MessageType.SNAPSHOT, snapshotCommand(devices)],
    [MessageType.RESUME, resuming],
    [MessageType.CLOSE, closing(false)],
    [MessageType.FORCE_SHUTDOWN, closing(true)],
    [MessageType.SERVE, serving],
    [MessageType.UNSERVE, unserving],
    [MessageType.TRACE, traceCommand(devices)],
    ...(upgrades === null ? [] : upgradeCommands(upgrades)),
  ]);
}

/** Changes limits, at any time: also while a pause waits for the disk. */
function limitReply(
  devices: Devices,
  request: Uint8Array,
  minor: number,
): Uint8Array<ArrayBuffer> {
  const device = devices.find(minor, "limit");
  const limits = decodeLimit(request, device.limits);
  if (limits !== null) device.limit(limits);
  return encodeLimitReply(minor, device.limits);
}

function questions(devices: Devices): [type: number, command: Command][] {
  return [
    [MessageType.PID, question((_request, cookie) => encodePid(cookie, Deno.pid))],
    [
      MessageType.RESERVE,
      question((_request, cookie) => {
        devices.reserve();
        return encodePlain(MessageType.RESERVE_RSP, cookie);
      }),
    ],
    [MessageType.LIST, question((_request, cookie) => listReply(devices, cookie))],
    [
      MessageType.EXPLAIN,
      question((_request, minor) =>
        encodeExplained(minor, devices.find(minor, "explain").facts(Deno.pid))
      ),
    ],
    [MessageType.STATS, statisticsCommand(devices)],
    [MessageType.REQUESTS, question((_request, minor) => requestsReply(devices, minor))],
    [MessageType.LIMIT, question((request, minor) => limitReply(devices, request, minor))],
    [MessageType.WRITE_LOG, question((request, minor) => writeLogReply(devices, request, minor))],
    [
      MessageType.DISK_INFO,
      question((_request, minor) => {
        const { disk } = devices.find(minor, "get the size of");
        return encodeDiskInfo(MessageType.DISK_INFO_RSP, minor, disk, RING_FEATURES);
      }),
    ],
    [
      MessageType.NODE,
      question((_request, minor) =>
        encodeNode(minor, devices.find(minor, "get the block device of"))
      ),
    ],
  ];
}
