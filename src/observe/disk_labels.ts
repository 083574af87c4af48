import type { EndedKind } from "../vbd/statistics.ts";
import { type Family, type HistogramLines, histogramLines, labelsText } from "./exposition.ts";
import type { DiskSample, LayerSample } from "./sample.ts";
import { DISK_STATES, type DiskState } from "./state.ts";

/** Where requests spend their time, as the label says it, and the field that counts it. */
const PLACES = [
  ["disk", "diskMs"],
  ["queue", "queueMs"],
  ["pause", "pauseMs"],
  ["retry", "retryMs"],
  ["limit", "limitMs"],
  ["client", "clientMs"],
] as const;

const KINDS: readonly EndedKind[] = ["read", "write", "flush", "discard", "zero", "status"];
/** Kinds that have histograms. */
const TIMED_KINDS = ["read", "write", "flush"] as const;

/** The labels of an image of a chain. */
export interface LayerLabels {
  readonly own: string;
  readonly info: string;
}

interface KeptLayer extends LayerLabels {
  readonly type: string;
  readonly path: string;
}

/** The labels of a disk's metrics, as the text has them. */
export class DiskLabels {
  readonly #minor: number;
  readonly #layers: KeptLayer[] = [];
  readonly own: string;
  readonly states: readonly (readonly [state: DiskState, labels: string])[];
  readonly kinds: readonly (readonly [kind: EndedKind, labels: string])[];
  readonly places: readonly (readonly [field: (typeof PLACES)[number][1], labels: string])[];
  readonly durations: readonly (readonly [
    kind: (typeof TIMED_KINDS)[number],
    lines: HistogramLines,
  ])[];
  #info = "";
  #infoOf: Pick<DiskSample, "pid" | "type" | "path" | "node"> | null = null;

  /** @param durations The family of the histograms. */
  constructor(minor: number, durations: Family) {
    this.#minor = minor;
    this.own = labelsText({ minor });
    this.states = DISK_STATES.map((state) => [state, labelsText({ minor, state })]);
    this.kinds = KINDS.map((kind) => [kind, labelsText({ minor, kind })]);
    this.places = PLACES.map(([place, field]) => [field, labelsText({ minor, place })]);
    this.durations = TIMED_KINDS.map((
      kind,
    ) => [kind, histogramLines(durations, labelsText({ minor, kind }))]);
  }

  info({ pid, type, path, node }: DiskSample): string {
    const of = this.#infoOf;
    const isSame = of !== null && of.pid === pid && of.type === type && of.path === path &&
      of.node === node;
    if (!isSame) {
      this.#infoOf = { pid, type, path, node };
      this.#info = labelsText({ minor: this.#minor, pid, type, path, node: node ?? "" });
    }
    return this.#info;
  }

  /** The labels of the images of a chain, in its order. */
  layers(chain: readonly LayerSample[]): readonly LayerLabels[] {
    this.#layers.length = Math.min(this.#layers.length, chain.length);
    for (let layer = 0; layer < chain.length; layer++) {
      const { type, path } = chain[layer];
      const kept = this.#layers[layer];
      if (kept !== undefined && kept.type === type && kept.path === path) continue;
      const own = { minor: this.#minor, layer };
      this.#layers[layer] = {
        type,
        path,
        own: labelsText(own),
        info: labelsText({ ...own, type, path }),
      };
    }
    return this.#layers;
  }
}
