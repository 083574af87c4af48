/// <reference lib="dom" />
import uPlot from "uplot";
import type { Point } from "./messages.ts";

/** Points that are kept: five minutes. */
const MOST_POINTS = 300;
const HEIGHT_PX = 150;

/** Which values of a point a chart shows. */
const VALUES: Readonly<Record<string, readonly number[]>> = {
  iops: [1, 2],
  bytes: [3, 4],
  latency: [5, 6],
  inflight: [7],
};

/** A colour or a font of the page's style. */
export function styleOf(name: string): string {
  return getComputedStyle(document.documentElement).getPropertyValue(name).trim();
}

function seriesOf(index: number): uPlot.Series {
  return {
    stroke: styleOf(index === 0 ? "--first" : "--second"),
    width: 2,
    // Colour alone does not tell one line from the other.
    dash: index === 0 ? undefined : [6, 4],
    points: { show: false },
  };
}

function axis(): uPlot.Axis {
  const line = { stroke: styleOf("--line"), width: 1 };
  return { stroke: styleOf("--soft"), grid: line, ticks: line, font: "12px system-ui, sans-serif" };
}

/** The time of a day, UTC: `21:03`, with seconds where there are some. */
function clockText(seconds: number): string {
  const text = new Date(seconds * 1000).toISOString();
  return text.slice(11, seconds % 60 === 0 ? 16 : 19);
}

class Chart {
  readonly #place: HTMLElement;
  readonly #values: readonly number[];
  #plot: uPlot | null = null;

  constructor(place: HTMLElement, values: readonly number[]) {
    this.#place = place;
    this.#values = values;
  }

  #data(points: readonly Point[]): uPlot.AlignedData {
    const times = points.map(([time]) => time ?? 0);
    return [times, ...this.#values.map((value) => points.map((point) => point[value] ?? null))];
  }

  make(points: readonly Point[]): void {
    this.#plot?.destroy();
    this.#plot = new uPlot(
      {
        width: this.#place.clientWidth,
        height: HEIGHT_PX,
        legend: { show: false },
        cursor: { show: false },
        tzDate: (seconds) => uPlot.tzDate(new Date(seconds * 1000), "Etc/UTC"),
        scales: {
          x: { range: (_plot, _least, most) => [most - MOST_POINTS, most] },
          y: { range: (_plot, _least, most) => [0, Math.max(1, (most ?? 0) * 1.1)] },
        },
        axes: [
          { ...axis(), size: 30, space: 56, values: (_plot, seconds) => seconds.map(clockText) },
          { ...axis(), size: 56 },
        ],
        series: [{}, ...this.#values.map((_value, index) => seriesOf(index))],
      },
      this.#data(points),
      this.#place,
    );
  }

  show(points: readonly Point[]): void {
    this.#plot?.setData(this.#data(points));
  }

  fit(): void {
    const width = this.#place.clientWidth;
    if (width > 0 && width !== this.#plot?.width) this.#plot?.setSize({ width, height: HEIGHT_PX });
  }
}

/** The charts of a page. */
export class Charts {
  #points: Point[] = [];
  readonly #charts: Chart[] = [];

  constructor() {
    for (const figure of document.querySelectorAll<HTMLElement>("[data-chart]")) {
      const place = figure.querySelector<HTMLElement>(".plot");
      const values = VALUES[figure.dataset.chart ?? ""];
      if (place !== null && values !== undefined) this.#charts.push(new Chart(place, values));
    }
    const fit = new ResizeObserver(() => this.#charts.forEach((chart) => chart.fit()));
    for (const place of document.querySelectorAll(".charts")) fit.observe(place);
  }

  /** Shows these points. */
  begin(points: readonly Point[]): void {
    this.#points = [...points];
    this.restyle();
  }

  /** Draws anew, with the colours of now. */
  restyle(): void {
    for (const chart of this.#charts) chart.make(this.#points);
  }

  add(point: Point): void {
    if (this.#points.at(-1)?.[0] === point[0]) return;
    this.#points.push(point);
    if (this.#points.length > MOST_POINTS) this.#points.shift();
    for (const chart of this.#charts) chart.show(this.#points);
  }
}
