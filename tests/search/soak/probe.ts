/**
 * A client of a quiet disk that measures how long requests take. It runs in a thread of its own, so
 * that the soak's own work is not measured.
 *
 * @module
 */
import { NbdClient } from "../../support/nbd_client.ts";

const REQUEST_BYTES = 4096;
const DISK_BYTES = 8 << 20;

/** A message to the probe: where the disk is, and how often to ask. */
export interface ProbeTask {
  readonly socket: string;
  readonly intervalMs: number;
}

/** A message from the probe: milliseconds of requests since the last message. */
export type ProbeReport = readonly number[];

const REPORT_MS = 1000;

/** Writes and reads in turn, one request at a time. */
async function probe({ socket, intervalMs }: ProbeTask, scope: Worker): Promise<void> {
  const { client } = await NbdClient.open(socket, { silenceMs: 60_000 });
  let latencies: number[] = [];
  let reportedMs = performance.now();
  const payload = new Uint8Array(REQUEST_BYTES);
  for (let n = 0;; n++) {
    const offset = (n * 37 * REQUEST_BYTES) % DISK_BYTES;
    const startMs = performance.now();
    if (n % 2 === 0) await client.write(offset, payload);
    else await client.read(offset, REQUEST_BYTES);
    const endMs = performance.now();
    latencies.push(endMs - startMs);
    if (endMs - reportedMs > REPORT_MS) {
      scope.postMessage(latencies);
      latencies = [];
      reportedMs = endMs;
    }
    await new Promise((resolve) => setTimeout(resolve, intervalMs));
  }
}

const scope = globalThis as unknown as Worker;
scope.onmessage = ({ data }: MessageEvent<ProbeTask>): void => void probe(data, scope);
