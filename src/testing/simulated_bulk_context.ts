import type { BulkContext } from "../bulk/bulk_context.ts";
import { DiskQueue } from "../queue/disk_queue.ts";
import type { SimulatedConnection } from "./simulated_connection.ts";
import type { SimulatedScheduler } from "./simulated_scheduler.ts";

/**
 * The queue, files and loop of one piece of bulk work on a simulated disk. It runs the loop until
 * the work is over; other work on the same loop runs too.
 */
export function simulatedBulkContext(
  scheduler: SimulatedScheduler,
  { connection, operations }: { connection: SimulatedConnection; operations: number },
): BulkContext {
  const queue = new DiskQueue(scheduler, connection, operations);
  connection.traceQueue(queue);
  return {
    queue,
    files: connection,
    run(start): Promise<void> {
      let over = false;
      start(() => over = true);
      if (scheduler.runUntil(() => over)) return Promise.resolve();
      return Promise.reject(new Error("The loop stands still before the work is finished"));
    },
    close(): void {
      queue.close();
    },
  };
}
