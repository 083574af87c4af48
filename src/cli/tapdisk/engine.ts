import { controlCommands } from "../../control/commands.ts";
import { Devices } from "../../control/devices.ts";
import { DEVICE_MAKERS } from "../../frontend/device_makers.ts";
import { controlSocketPath, nbdSocketPath, prepareFolders } from "../../control/paths.ts";
import { ControlServer } from "../../control/server.ts";
import { removeStaleSockets } from "../../control/stale_sockets.ts";
import { formatStatistics } from "../../control/statistics_text.ts";
import { NbdServer } from "../../frontend/nbd/server.ts";
import type { Logger } from "../../log/log.ts";
import { EpollScheduler } from "../../scheduler/epoll_scheduler.ts";
import { queueContexts } from "./queues.ts";

const TAKEOVER_HINT = "a second signal ends it at once, and leaves them for 'tap-ctl recover'";

/** A tapdisk that takes orders. */
export interface Tapdisk {
  readonly socketPath: string;
  /** Serves until the last device is detached or `end` was called and is through. */
  run(): Promise<void>;
  /**
   * Closes all disks in order, removes the sockets, and lets `run` return, unless block devices are
   * in use, which go on.
   */
  end(): void;
  /** Writes what every device has done so far to the log. */
  logStatistics(): void;
}

/** Puts the engine of this process together. Throws `SystemError`. */
export function startTapdisk(log: Logger): Tapdisk {
  prepareFolders();
  removeStaleSockets();
  const scheduler = new EpollScheduler();
  const stop = () => server.shutDown(() => scheduler.stop());
  // The answer to the detach that emptied it goes out before the socket closes.
  const emptied = () => void scheduler.addTimer(0, stop);
  const devices = new Devices({
    scheduler,
    contextOf: queueContexts(scheduler, log),
    frontends: [(vbd) => new NbdServer(scheduler, vbd, nbdSocketPath(Deno.pid, vbd.minor))],
    makers: DEVICE_MAKERS,
    log,
    emptied,
  });
  const socketPath = controlSocketPath(Deno.pid);
  const server = new ControlServer(scheduler, socketPath, {
    commands: controlCommands(devices),
    log,
  });
  return {
    socketPath,
    run: () => scheduler.run(),
    end(): void {
      server.runExclusive((finished) =>
        devices.endAll((left) => {
          // Whoever still waits is told that there is no such device.
          finished();
          if (left === 0) return stop();
          log.error(`Not ended: ${left} block devices are in use; ${TAKEOVER_HINT}`);
        })
      );
    },
    logStatistics(): void {
      for (const { minor } of devices.list()) {
        log.info(`Statistics of minor ${minor}: ${formatStatistics(devices.statistics(minor))}`);
      }
    },
  };
}
