/**
 * `src/web/client`: the script of the pages, which runs in the browser. It draws charts and brings new
 * figures; every page can be read and used without it. All texts come from the server and are put into the
 * page as texts: it must not make markup of them.
 *
 * @module
 */
/// <reference lib="dom" />
import { Charts } from "./charts.ts";
import { HeatMap } from "./heat.ts";
import type { FirstMessage, NextMessage } from "./messages.ts";
import { fillList, renew, setText, showProblem } from "./page.ts";

/** How long to wait before a stream that was refused is asked for again. */
const AGAIN_MS = 5000;
/** How often a page is fetched again of which a part is not ready. */
const PENDING_MS = 2000;

class LivePage {
  readonly #url: string;
  readonly #charts = new Charts();
  readonly #heat: HeatMap | null;
  #source: EventSource | null = null;
  #timer: number | undefined;
  #isRenewing = false;

  constructor(url: string) {
    this.#url = url;
    const canvas = document.getElementById("heat");
    this.#heat = canvas instanceof HTMLCanvasElement ? new HeatMap(canvas) : null;
    // Browsers open few connections to a host: pages that nobody sees have none.
    document.addEventListener("visibilitychange", () => this.#follow());
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => {
      this.#charts.restyle();
      this.#heat?.draw();
    });
    this.#follow();
  }

  #follow(): void {
    clearTimeout(this.#timer);
    this.#source?.close();
    this.#source = null;
    if (document.hidden) return;
    const source = new EventSource(this.#url);
    this.#source = source;
    source.addEventListener("first", ({ data }) => this.#first(JSON.parse(data)));
    source.addEventListener("next", ({ data }) => this.#next(JSON.parse(data)));
    source.addEventListener("gone", () => {
      source.close();
      showProblem("This disk is not served any more.");
    });
    source.addEventListener("error", () => {
      showProblem("There is no connection to the host. It is tried again.");
      if (source.readyState !== EventSource.CLOSED) return;
      this.#timer = setTimeout(() => this.#follow(), AGAIN_MS);
    });
  }

  #first({ points, columns }: FirstMessage): void {
    showProblem(null);
    this.#charts.begin(points);
    this.#heat?.begin(columns ?? []);
  }

  #next(message: NextMessage): void {
    const { point, column, now, problem, rows, texts, requests, findings, events, chain } = message;
    showProblem(problem);
    if (point !== undefined) this.#charts.add(point);
    if (column !== undefined) this.#heat?.add(column);
    for (const [name, text] of Object.entries(now)) {
      setText(document.querySelector(`[data-now="${name}"]`), text);
    }
    if (rows !== undefined) this.#showRows(rows);
    for (const [field, text] of Object.entries(texts ?? {})) {
      setText(document.querySelector(`[data-field="${field}"]`), text);
    }
    if (requests !== undefined) showLines("requests", requests, "No request is open.");
    if (findings !== undefined) {
      showLines("findings", findings, "Nothing that its tapdisk knows of.");
    }
    if (events !== undefined) showEvents(events);
    const sign = document.getElementById("chain")?.dataset.sign;
    if (chain !== undefined && sign !== chain) this.#renew("chain");
    document.documentElement.dataset.live = String(point?.[0] ?? "");
  }

  #showRows(rows: NonNullable<NextMessage["rows"]>): void {
    const shown = new Map<string, HTMLElement>();
    for (const row of document.querySelectorAll<HTMLElement>("[data-disk]")) {
      shown.set(row.dataset.disk ?? "", row);
    }
    let isSame = shown.size === rows.length;
    for (const [key, cells, spark] of rows) {
      const row = shown.get(key);
      isSame &&= row !== undefined;
      for (const [field, text] of Object.entries(cells)) {
        setText(row?.querySelector(`[data-field="${field}"]`) ?? null, text);
      }
      row?.querySelector("polyline")?.setAttribute("points", spark);
    }
    if (!isSame) this.#renew("disks", "count", "troubles");
  }

  #renew(...ids: readonly string[]): void {
    if (this.#isRenewing) return;
    this.#isRenewing = true;
    renew(...ids).catch(() => {}).finally(() => {
      setTimeout(() => this.#isRenewing = false, PENDING_MS);
    });
  }
}

/** Shows lines, or that there are none; null when the tapdisk does not say. */
function showLines(id: string, lines: readonly string[] | null, without: string): void {
  const list = document.getElementById(id);
  const none = document.getElementById(`no-${id}`);
  if (list === null || none === null) return;
  fillList(list, lines ?? []);
  none.hidden = (lines?.length ?? 0) > 0;
  setText(none, lines === null ? "Its tapdisk does not say." : without);
}

function showEvents(events: NonNullable<NextMessage["events"]>): void {
  const list = document.getElementById("events");
  if (list === null) return;
  const entries = fillList(list, events.map(([time, text]) => `${time} ${text}`));
  entries.forEach((entry, index) => entry.classList.toggle("problem", events[index][2]));
}

/** Fetches parts of the page until they are ready. */
function awaitPending(): void {
  const pending = document.querySelector("[data-pending]");
  const part = pending?.closest("[id]");
  if (part === null || part === undefined) return;
  setTimeout(() => renew(part.id).catch(() => {}).then(awaitPending), PENDING_MS);
}

const { stream } = document.body.dataset;
if (stream !== undefined) new LivePage(stream);
awaitPending();
