/**
 * Reads files of counters as monitoring programs do (`read_attributes_vbd3` of Xen's
 * tools/libs/stat/xenstat_linux.c): one read of a `struct vbd3_stats`, whose version must be 1.
 *
 * @module
 */
import assert from "node:assert/strict";
import {
  metricsName,
  type MetricsPage,
  type MetricsPages,
  type MetricsSubject,
  privatePage,
} from "../../src/metrics/metrics.ts";

const STATS_BYTES = 96;

/** The fields, with the names of the structure. */
const FIELDS = [
  "oo_reqs",
  "read_reqs_submitted",
  "read_reqs_completed",
  "read_sectors",
  "read_total_ticks",
  "write_reqs_submitted",
  "write_reqs_completed",
  "write_sectors",
  "write_total_ticks",
  "io_errors",
  "flags",
] as const;

export type Vbd3Stats = Record<typeof FIELDS[number], number>;

/** Decodes a page. */
export function decodeStats(bytes: Uint8Array<ArrayBuffer>): Vbd3Stats {
  const view = new DataView(bytes.buffer, bytes.byteOffset, STATS_BYTES);
  assert.deepEqual([view.getUint32(0, true), view.getUint32(4, true)], [1, 0]);
  const values = FIELDS.map((name, index) =>
    [name, Number(view.getBigUint64(8 + 8 * index, true))] as const
  );
  return Object.fromEntries(values) as Vbd3Stats;
}

/** Pages whose content a test can see. */
export class SeenPages implements MetricsPages {
  readonly named = new Map<string, Uint32Array<ArrayBuffer>>();
  opened = 0;

  open(subject: MetricsSubject): MetricsPage {
    const name = metricsName(subject);
    assert.ok(!this.named.has(name), `${name} is open`);
    const { words } = privatePage();
    this.named.set(name, words);
    this.opened++;
    return { words, close: () => void this.named.delete(name) };
  }

  read(name: string): Vbd3Stats {
    const words = this.named.get(name);
    assert.ok(words !== undefined, `${name} is not open`);
    return decodeStats(new Uint8Array(words.buffer));
  }
}

/** Reads a file. */
export function readStats(path: string): Vbd3Stats {
  const bytes = new Uint8Array(STATS_BYTES);
  using file = Deno.openSync(path);
  assert.equal(file.readSync(bytes), STATS_BYTES);
  return decodeStats(bytes);
}
