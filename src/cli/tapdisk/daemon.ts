import { type Done, messageOf, type SystemError } from "../../../ffi/errno.ts";
import { detachStandardStreams } from "../../../ffi/process.ts";
import { kernelXen, type Xen } from "../../../ffi/xen.ts";
import { controlCommands } from "../../control/daemon/commands.ts";
import { Devices } from "../../control/daemon/devices.ts";
import { adviceOn } from "../../control/daemon/remaining.ts";
import { DEVICE_MAKERS } from "../../frontend/device_makers.ts";
import {
  controlSocketPath,
  nbdClientSocketPath,
  nbdSockets,
  prepareFolders,
} from "../../control/paths.ts";
import { ControlServer } from "../../control/daemon/server.ts";
import { SHARED_ARGUMENT } from "../../control/client/spawn.ts";
import { announceShared, withdrawShared } from "../../control/client/shared_tapdisk.ts";
import { Room } from "../../control/daemon/room.ts";
import { tapdiskSettings } from "../../control/settings.ts";
import { rehearse } from "../../control/handover/rehearsal.ts";
import { removeLinksTo } from "../../control/handover/names.ts";
import { TakeOver } from "../../control/handover/take_over.ts";
import { Upgrades } from "../../control/handover/upgrades.ts";
import { removeStaleSockets } from "../../control/client/stale_sockets.ts";
import { formatStatistics } from "../../control/protocol/statistics.ts";
import { handedOver } from "../../driver/nbd/handed_over.ts";
import { HandoverSocket, shownText } from "../../frontend/handover_socket.ts";
import { kernelProcessorTimes } from "../../frontend/xenblkif/polling.ts";
import { NbdPorts } from "../../frontend/nbd/ports.ts";
import { NbdServer } from "../../frontend/nbd/server.ts";
import type { Logger } from "../../log/log.ts";
import { MetricsFolder, removeStaleMetrics } from "../../metrics/metrics_folder.ts";
import { EpollScheduler } from "../../scheduler/epoll_scheduler.ts";
import { ownedBy, type Scheduler } from "../../scheduler/scheduler.ts";
import { printErrorLine } from "../print.ts";
import { guardRuntime, tapdiskFaults } from "./faults.ts";
import { queueContexts } from "./queues.ts";
import { Succession } from "./succession.ts";

/** After how long the log names the disks that are still being closed. */
const SLOW_END_MS = 5_000;

/** How long a minor without an image may stay after its caller told the process to end. */
const ABANDONED_MS = 60_000;

/** A tapdisk in this process. */
export interface Tapdisk {
  readonly socketPath: string;
  /** Serves until the last device is detached, or until `end` has closed all disks. */
  run(): Promise<void>;
  /**
   * Whether SIGTERM is not for this process: it may be meant for the disk of one caller, and others have
   * disks here. What that caller left is taken away later.
   */
  outlivesSigterm(): boolean;
  /** Whether another process serves the disks now, and this one is about to end. */
  readonly hasSuccessor: boolean;
  /** Sends a signal on to the process that serves the disks; false when it is this one. */
  passOn(signal: Deno.Signal): boolean;
  /**
   * Closes all disks in order, removes the sockets, and lets `run` return. Disks whose block device is
   * in use stay open; then the process keeps running.
   *
   * @param refused Called when the process keeps running, because disks stay open.
   */
  end(refused: () => void): void;
  /** Logs the state of every device, its requests in flight, and its statistics. */
  logState(): void;
}

/** The socket on which other processes hand over connections to NBD servers; null without one. */
function openHandover(scheduler: Scheduler, log: Logger): HandoverSocket | null {
  const path = nbdClientSocketPath(Deno.pid);
  try {
    return new HandoverSocket(scheduler, path, {
      log: (message) => log.warn(message),
      taken(name, fd): void {
        handedOver.put(name, fd);
        log.info(`Took a descriptor for an image named nbd: and ${shownText(name)}`);
      },
    });
  } catch (error) {
    log.warn(`No descriptors can be handed over on ${path}: ${messageOf(error)}`);
    return null;
  }
}

/** The room of a process for disks of several callers. */
function sharedRoom(scheduler: Scheduler, log: Logger, devices: () => Devices): Room {
  const { disksPerProcess: disks, idleSeconds } = tapdiskSettings();
  return new Room({
    ...{ scheduler, log, disks, idleMs: idleSeconds * 1000 },
    attached: () => devices().count,
    idle(): void {
      log.info(`Ending: there was no disk for ${idleSeconds} s`);
      devices().endUnused();
    },
  });
}

/** How a tapdisk starts. */
export interface StartOptions {
  /** Whether others wait for the end of this process. */
  readonly inForeground: boolean;
  /** Whether it takes disks of several callers. */
  readonly shared: boolean;
  /** The process whose disks it takes over. */
  readonly takeOver?: number;
  /** By default, that on which this machine runs. */
  readonly xen?: Xen;
}

/**
 * Puts the parts of the daemon together, and opens the control socket or takes that of another process
 * over. Throws `SystemError`.
 */
export function startTapdisk(
  log: Logger,
  { inForeground, shared, takeOver, xen = kernelXen }: StartOptions,
): Tapdisk {
  prepareFolders();
  removeStaleSockets();
  removeStaleMetrics();
  const metrics = new MetricsFolder((message) => log.warn(message));
  // Before any end but a kill.
  const succession = new Succession();
  addEventListener("unload", () => metrics.close({ keepsNotices: succession.pid !== null }));
  const faults = tapdiskFaults(log);
  guardRuntime(faults);
  const scheduler = new EpollScheduler({ lastResort: faults });
  const warn = (message: string): void => log.warn(message);
  let parts: { server: ControlServer; handover: HandoverSocket | null } | null = null;
  const server = (): ControlServer => {
    if (parts === null) throw new Error("The control socket is not open yet");
    return parts.server;
  };
  const stop = () => {
    if (room !== undefined) withdrawShared();
    parts?.handover?.close();
    removeLinksTo(Deno.pid);
    server().shutDown(() => scheduler.stop());
  };
  // The answer to the last detach is sent before the socket closes.
  const emptied = () => void scheduler.addTimer(0, stop);
  const ports = new NbdPorts(scheduler, warn);
  const contextOf = queueContexts(scheduler, { log, metrics });
  const room = shared ? sharedRoom(scheduler, log, () => devices) : undefined;
  const devices: Devices = new Devices({
    room,
    scheduler,
    contextOf,
    frontends: [
      (vbd) => {
        const sockets = nbdSockets(Deno.pid, vbd.minor);
        return new NbdServer(ownedBy(vbd, scheduler), vbd, sockets, warn, ports);
      },
    ],
    makers: DEVICE_MAKERS,
    log,
    runExclusive: (minor, job) => server().runExclusive(minor, job),
    emptied,
    failed: (minor) => server().diskFailed(minor),
    xen,
    processors: kernelProcessorTimes,
  });
  const socketPath = controlSocketPath(Deno.pid);
  let takingOver: TakeOver | null = null;
  const exit = (status: number): never => {
    log.close();
    Deno.exit(status);
  };
  const upgrades = new Upgrades({
    scheduler,
    log,
    devices,
    server,
    whyStaying: inForeground ? "it runs in the foreground (-D), and others wait for its end" : null,
    args: shared ? [SHARED_ARGUMENT] : [],
    exit(pid): void {
      if (room !== undefined) withdrawShared();
      devices.endTraces(`process ${pid} serves the disk now`);
      succession.begin(pid);
      for (const { parts } of devices.all) {
        for (const users of parts.access.handovers) users.leave?.();
      }
      // Nothing is left to be done in its turns.
      scheduler.stop();
    },
  });
  const openSockets = (): ControlServer => {
    const commands = controlCommands(devices, upgrades);
    const opened = new ControlServer(scheduler, socketPath, { commands, log });
    parts = { server: opened, handover: openHandover(scheduler, log) };
    return opened;
  };
  if (takeOver === undefined) {
    openSockets();
    if (room !== undefined) announceShared();
  } else {
    const failed = (error: SystemError): void => {
      log.error(error.message);
      printErrorLine(`tapdisk: ${error.message}`);
      exit(error.errno);
    };
    const serving = (): void => {
      detachStandardStreams();
      if (room !== undefined) announceShared();
    };
    const tries = (images: readonly string[], done: Done): void =>
      rehearse(contextOf("auto"), images, done);
    const host = { scheduler, log, devices, rehearse: tries, openSockets, serving, failed };
    takingOver = new TakeOver(host, takeOver);
  }
  return {
    socketPath,
    async run(): Promise<void> {
      await scheduler.run();
      if (succession.pid === null) return;
      await succession.lastTurns();
      for (const { parts } of devices.all) {
        for (const users of parts.access.handovers) users.letGo?.();
      }
      exit(0);
    },
    get hasSuccessor(): boolean {
      return succession.pid !== null;
    },
    passOn: (signal) => succession.passOn(signal),
    outlivesSigterm(): boolean {
      if (room === undefined || devices.count + room.kept === 0) return false;
      succession.note("SIGTERM", ABANDONED_MS);
      devices.detachAbandoned(ABANDONED_MS);
      return true;
    },
    end(refused): void {
      if (takingOver?.giveUp() === true) return;
      const late = scheduler.addTimer(SLOW_END_MS, () => {
        for (const { minor, name } of devices.list()) {
          log.warn(
            `Minor ${minor}, ${name}, is still being closed; a second signal ends all at once`,
          );
        }
      });
      devices.endAll((minor, job) => server().preempt(minor, job), (remaining) => {
        scheduler.cancelTimer(late);
        if (remaining.length === 0) return stop();
        for (const device of remaining) log.error(adviceOn(device));
        refused();
      });
    },
    logState(): void {
      for (const { minor } of devices.list()) {
        const device = devices.find(minor, "report on");
        for (const line of device.report()) log.info(`Minor ${minor}: ${line}`);
        log.info(`Statistics of minor ${minor}: ${formatStatistics(device.statistics())}`);
      }
    },
  };
}
