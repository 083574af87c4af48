import type { Logger } from "../../log/log.ts";
import { describeFault, type LastResort } from "../../scheduler/faults.ts";

/** The exit status after a fault in what all disks share: EX_SOFTWARE of sysexits.h. */
const EXIT_FAULT = 70;

/** What a tapdisk does about faults that belong to no connection and no disk. */
export function tapdiskFaults(log: Logger): LastResort {
  return {
    unowned(error: unknown): void {
      log.error(`A fault, after which the disks go on: ${describeFault(error)}`);
    },
    fatal(error: unknown): void {
      log.error(
        "Ended by a fault in what all disks share; 'tap-ctl recover' takes over the block devices " +
          `that stay: ${describeFault(error)}`,
      );
      log.close();
      Deno.exit(EXIT_FAULT);
    },
  };
}

/** Catches errors in promises and listeners of the runtime, which would end the process. */
export function guardRuntime({ unowned }: LastResort): void {
  addEventListener("unhandledrejection", (event) => {
    event.preventDefault();
    unowned(event.reason);
  });
  addEventListener("error", (event) => {
    event.preventDefault();
    unowned(event.error);
  });
}
