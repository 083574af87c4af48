import { type Markup, markup } from "./markup.ts";
import { layerClass } from "./style.ts";
import { type PicturePlace, svgElement } from "./svg.ts";
import { formatMicroseconds } from "./times.ts";

/** How long requests of one kind took, as `tap-ctl stats` has it; microseconds. */
export interface LatencyDescription {
  /** `reads` */
  readonly name: string;
  readonly requests: number;
  readonly p50: number;
  readonly p99: number;
  readonly p99_9: number;
  readonly highest: number;
  /** Pairs: an upper bound, and the requests between the bound of the pair before and this one. */
  readonly histogram: readonly (readonly [below: number, requests: number])[];
}

const WIDTH_PX = 880;
const MARGIN_PX = 16;
const HEAD_PX = 44;
const PLOT_PX = 84;
const PANEL_PX = 164;
/** Room for the words of percentiles above the bars. */
const WORDS_PX = 44;
const PLOT_WIDTH = WIDTH_PX - 2 * MARGIN_PX;
/** Rare requests stay visible. */
const LEAST_BAR_PX = 2;
const LEAST_MICROSECONDS = 0.5;
/** Buckets of a histogram: four to each power of two, and each microsecond below four. */
const STEPS_LOG2 = 2;

/** The lower bound of a bucket of `src/vbd/latency.ts`, microseconds. */
function lowerBound(below: number): number {
  const octave = Math.max(0, Math.ceil(Math.log2(below)) - STEPS_LOG2 - 1);
  return Math.max(LEAST_MICROSECONDS, below - 2 ** octave);
}

/** The times that all panels show, on a logarithmic axis. */
class TimeAxis {
  readonly #from: number;
  readonly #to: number;

  constructor(kinds: readonly LatencyDescription[]) {
    const bounds = kinds.flatMap(({ histogram }) => histogram.map(([below]) => below));
    const lowest = bounds.reduce((least, below) => Math.min(least, lowerBound(below)), Infinity);
    const highest = bounds.reduce((most, below) => Math.max(most, below), 0);
    this.#from = Math.log2(Number.isFinite(lowest) ? lowest : 1);
    // At least a factor of four, so that one bucket is not as wide as the picture.
    this.#to = Math.max(this.#from + 2, Math.log2(Math.max(1, highest)));
  }

  x(microseconds: number): number {
    const at = Math.log2(Math.max(LEAST_MICROSECONDS, microseconds));
    const share = (at - this.#from) / (this.#to - this.#from);
    return MARGIN_PX + Math.min(1, Math.max(0, share)) * PLOT_WIDTH;
  }

  /** Powers of ten within the axis. */
  ticks(): number[] {
    const ticks: number[] = [];
    for (let time = 1; Math.log2(time) <= this.#to; time *= 10) {
      if (Math.log2(time) >= this.#from) ticks.push(time);
    }
    return ticks;
  }
}

function percentile(
  axis: TimeAxis,
  { name, time, line, bottom }: { name: string; time: number; line: number; bottom: number },
): Markup {
  const x = axis.x(time);
  const top = bottom - PLOT_PX - WORDS_PX + line * 14;
  const isRight = x > WIDTH_PX * 0.75;
  return markup`<path class="mark" d="M${x} ${
    top + 3
  }V${bottom}" stroke="#1f2328" stroke-dasharray="2 3" fill="none"/>
<text class="small" x="${x + (isRight ? -5 : 5)}" y="${top + 12}" font-size="12" text-anchor="${
    isRight ? "end" : "start"
  }">${name} ${formatMicroseconds(time)}</text>`;
}

function panel(
  kind: LatencyDescription,
  { axis, top, index }: { axis: TimeAxis; top: number; index: number },
): Markup[] {
  const bottom = top + WORDS_PX + PLOT_PX + 8;
  const most = kind.histogram.reduce((highest, [, count]) => Math.max(highest, count), 0);
  const bars = kind.histogram.map(([below, count]) => {
    const height = Math.max(LEAST_BAR_PX, PLOT_PX * count / Math.max(1, most));
    const [x, end] = [axis.x(lowerBound(below)), axis.x(below)];
    const range = `${formatMicroseconds(lowerBound(below))} to ${formatMicroseconds(below)}`;
    return markup`<rect class="${layerClass(index)}" x="${x}" y="${bottom - height}" width="${
      Math.max(1, end - x - 1)
    }" height="${height}" fill="#0969da"><title>${range}: ${count}</title></rect>`;
  });
  const marks = kind.requests === 0 ? [] : [
    percentile(axis, { name: "median", time: kind.p50, line: 0, bottom }),
    percentile(axis, { name: "99 %", time: kind.p99, line: 1, bottom }),
    percentile(axis, { name: "99.9 %", time: kind.p99_9, line: 2, bottom }),
  ];
  const ticks = axis.ticks().map((time) =>
    markup`<path class="line" d="M${axis.x(time)} ${bottom}v4" stroke="#818b98"/>
<text class="soft small" x="${axis.x(time)}" y="${
      bottom + 17
    }" font-size="12" text-anchor="middle">${formatMicroseconds(time)}</text>`
  );
  return [
    markup`<text x="${MARGIN_PX}" y="${top + 4}">${kind.name}: ${`${kind.requests}`}</text>`,
    ...bars,
    markup`<path class="line" d="M${MARGIN_PX} ${bottom}h${PLOT_WIDTH}" stroke="#818b98"/>`,
    ...ticks,
    ...marks,
  ];
}

/** Latencies of one kind in a sentence. */
function sentence({ name, requests, p50, p99, p99_9, highest }: LatencyDescription): string {
  if (requests === 0) return `No ${name}.`;
  return `${requests} ${name}: half took at most ${formatMicroseconds(p50)}, 99 % at most ` +
    `${formatMicroseconds(p99)}, 99.9 % at most ${formatMicroseconds(p99_9)}, the slowest ` +
    `${formatMicroseconds(highest)}.`;
}

/** How long requests took, as SVG: a histogram for each kind, below each other on one axis of times. */
export function latencyPicture(
  { title, kinds }: { title: string; kinds: readonly LatencyDescription[] },
  place?: PicturePlace,
): string {
  const axis = new TimeAxis(kinds);
  return svgElement({
    width: WIDTH_PX,
    height: HEAD_PX + kinds.length * PANEL_PX + MARGIN_PX,
    title,
    description: kinds.map(sentence).join(" "),
    body: [
      markup`<text class="head" x="${MARGIN_PX}" y="26">${title}</text>`,
      ...kinds.flatMap((kind, index) =>
        panel(kind, { axis, top: HEAD_PX + 10 + index * PANEL_PX, index })
      ),
    ],
  }, place).text;
}
