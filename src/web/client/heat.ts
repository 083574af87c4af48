/// <reference lib="dom" />
import { styleOf } from "./charts.ts";

const MOST_COLUMNS = 300;
const HEIGHT_PX = 168;
/** The faintest colour of a place with requests. */
const LEAST_ALPHA = 0.2;

/** The heat map of latencies: a column for each sample, a row for each power of two. */
export class HeatMap {
  readonly #canvas: HTMLCanvasElement;
  #columns: (readonly number[])[] = [];

  constructor(canvas: HTMLCanvasElement) {
    this.#canvas = canvas;
    new ResizeObserver(() => this.draw()).observe(canvas);
  }

  begin(columns: readonly (readonly number[])[]): void {
    this.#columns = [...columns];
    this.draw();
  }

  add(column: readonly number[]): void {
    this.#columns.push(column);
    if (this.#columns.length > MOST_COLUMNS) this.#columns.shift();
    this.draw();
  }

  draw(): void {
    const width = this.#canvas.clientWidth;
    const scale = devicePixelRatio;
    this.#canvas.width = Math.round(width * scale);
    this.#canvas.height = Math.round(HEIGHT_PX * scale);
    const context = this.#canvas.getContext("2d");
    if (context === null) return;
    context.scale(scale, scale);
    context.fillStyle = styleOf("--first");
    let most = 1;
    for (const column of this.#columns) for (const count of column) most = Math.max(most, count);
    const cellWidth = width / MOST_COLUMNS;
    const first = MOST_COLUMNS - this.#columns.length;
    this.#columns.forEach((column, index) => {
      const cellHeight = HEIGHT_PX / column.length;
      column.forEach((count, row) => {
        if (count === 0) return;
        const share = Math.log(1 + count) / Math.log(1 + most);
        context.globalAlpha = LEAST_ALPHA + (1 - LEAST_ALPHA) * share;
        const y = HEIGHT_PX - (row + 1) * cellHeight;
        context.fillRect((first + index) * cellWidth, y, Math.ceil(cellWidth), cellHeight - 0.5);
      });
    });
  }
}
