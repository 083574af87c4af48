import type { HostSample } from "../../observe/sample.ts";
import { plainText } from "../../log/plain_text.ts";
import { detailLines } from "./detail.ts";
import { filtered, type Row, rowsOf, SORT_KEYS, sorted, type SortKey } from "./rows.ts";
import { rowLine, summaryLine, titleLine, troubleLines } from "./table.ts";
import { head, left, widthOf } from "./text.ts";

/** What is shown of the samples. */
export interface View {
  readonly sort: SortKey;
  readonly isReversed: boolean;
  /** Only rows with this word; all when it is empty. */
  readonly filter: string;
  /** The word that is being typed; null while none is. */
  readonly typed: string | null;
  /** The minor that is selected; null for the first row. */
  readonly selected: number | null;
  /** Whether the selected disk is shown alone. */
  readonly isOpen: boolean;
  /** Lines of it that are above the screen. */
  readonly scrolled: number;
  readonly isHelp: boolean;
}

/** The first view. */
export const FIRST_VIEW: View = {
  sort: "iops",
  isReversed: false,
  filter: "",
  typed: null,
  selected: null,
  isOpen: false,
  scrolled: 0,
  isHelp: false,
};

/** Two samples, one after the other; there is no first one at the beginning. */
export interface Samples {
  readonly before: HostSample | null;
  readonly now: HostSample;
}

/** Columns and rows of a terminal. */
export interface Size {
  readonly columns: number;
  readonly rows: number;
}

/** A line, and how it looks. */
export interface Line {
  readonly text: string;
  readonly style: "plain" | "bold" | "reverse" | "bad";
}

const SORT_LETTERS: Readonly<Record<string, SortKey>> = {
  i: "iops",
  b: "throughput",
  l: "latency",
  d: "depth",
  f: "flight",
  t: "retries",
  e: "errors",
  m: "minor",
  n: "image",
  s: "state",
};

const HELP: readonly string[] = [
  "Keys",
  "",
  "  up, down, page up, page down   select a disk",
  "  enter                          show the selected disk alone; escape goes back",
  "  /                              show only disks with a word, a minor or a process",
  "  i b l d f t e                  sort by IOPS, bytes, latency, queue depth, requests in",
  "                                 flight, retries, errors",
  "  m n s                          sort by minor, name of the image, state",
  "  r                              reverse the order",
  "  < >                            sort by the key before, and after",
  "  q, Ctrl-C                      quit",
  "",
  "Columns",
  "",
  "  P50, P99   half, and 99 of 100 of the requests took no longer",
  "  QD         requests under way on average     FLY    requests in flight just now",
  "  RTY        requests that wait for a retry    ERR    errors per second",
  "  D/Q/C      % of their time that requests spent at the disk, waiting, and with the client;",
  "             or the state of a disk that does not run",
  "  TOP        % of what was read that the top image had; CCH: % that a cache had",
];

/** The rows that a view has, in its order. */
export function rowsIn(view: View, { before, now }: Samples): Row[] {
  return sorted(filtered(rowsOf(before, now), view.filter), view.sort, view.isReversed);
}

function indexIn(view: View, rows: readonly Row[]): number {
  return Math.max(0, rows.findIndex(({ disk }) => disk.minor === view.selected));
}

/** How many lines of a text can be above the screen. */
function mostScrolled(view: View, samples: Samples, { columns, rows }: Size): number {
  const lines = view.isHelp ? HELP.length : openLines(view, samples, columns).length;
  return Math.max(0, lines - roomIn(rows));
}

/** Lines between the first and the last one of a screen. */
function roomIn(rows: number): number {
  return Math.max(0, rows - 2);
}

function scrolled(view: View, by: number, most: number): View {
  return { ...view, scrolled: Math.max(0, Math.min(most, view.scrolled + by)) };
}

function moved(view: View, rows: readonly Row[], by: number): View {
  if (rows.length === 0) return view;
  const to = Math.min(rows.length - 1, Math.max(0, indexIn(view, rows) + by));
  return { ...view, selected: rows[to].disk.minor };
}

function typing(view: View, typed: string, key: string): View {
  if (key === "enter") return { ...view, typed: null, filter: typed };
  if (key === "escape") return { ...view, typed: null };
  if (key === "backspace") return { ...view, typed: [...typed].slice(0, -1).join("") };
  return widthOf(key) <= 2 && [...key].length === 1 && typed.length < 256
    ? { ...view, typed: typed + key }
    : view;
}

function nextSort(sort: SortKey, by: number): SortKey {
  const at = SORT_KEYS.indexOf(sort) + by + SORT_KEYS.length;
  return SORT_KEYS[at % SORT_KEYS.length];
}

/** The view after a key; null to quit. */
export function pressed(view: View, key: string, samples: Samples, size: Size): View | null {
  if (view.typed !== null) return typing(view, view.typed, key);
  const rows = rowsIn(view, samples);
  const page = Math.max(1, size.rows - 4);
  const move = (by: number): View =>
    view.isOpen || view.isHelp
      ? scrolled(view, by, mostScrolled(view, samples, size))
      : moved(view, rows, by);
  switch (key) {
    case "q":
      return null;
    case "escape":
      return { ...view, isOpen: false, isHelp: false, scrolled: 0, filter: isBack(view) };
    case "up":
    case "k":
      return move(-1);
    case "down":
    case "j":
      return move(1);
    case "page up":
      return move(-page);
    case "page down":
    case " ":
      return move(page);
    case "home":
      return move(-Infinity);
    case "end":
      return move(Infinity);
    case "enter": {
      const row = rows[indexIn(view, rows)];
      return row === undefined
        ? view
        : { ...view, isOpen: true, isHelp: false, scrolled: 0, selected: row.disk.minor };
    }
    case "/":
      return { ...view, typed: view.filter, isOpen: false, isHelp: false };
    case "?":
    case "h":
      return { ...view, isHelp: !view.isHelp, scrolled: 0 };
    case "r":
      return { ...view, isReversed: !view.isReversed };
    case "<":
      return { ...view, sort: nextSort(view.sort, -1) };
    case ">":
      return { ...view, sort: nextSort(view.sort, 1) };
  }
  return Object.hasOwn(SORT_LETTERS, key) ? { ...view, sort: SORT_LETTERS[key] } : view;
}

/** Escape goes back first; where there is nothing to go back from, it ends the filter. */
function isBack(view: View): string {
  return view.isOpen || view.isHelp ? view.filter : "";
}

function plain(text: string): Line {
  return { text, style: "plain" };
}

/** The part of lines that is on the screen. */
function window(lines: readonly Line[], scrolled: number, rows: number): Line[] {
  const first = Math.min(scrolled, Math.max(0, lines.length - rows));
  return lines.slice(first, first + rows);
}

function bottom(view: View, columns: number): Line {
  if (view.typed !== null) return plain(head(`Filter: ${plainText(view.typed)}_`, columns));
  const filter = view.filter === "" ? "" : `, filter "${plainText(view.filter)}"`;
  const order = `sorted by ${view.sort}${view.isReversed ? ", reversed" : ""}${filter}`;
  return { text: head(`?: help, q: quit; ${order}`, columns), style: "bold" };
}

function tableLines(view: View, samples: Samples, { columns, rows: height }: Size): Line[] {
  const rows = rowsIn(view, samples);
  const trouble = troubleLines(samples.now).slice(0, Math.max(0, Math.floor(height / 3)));
  const room = Math.max(0, height - trouble.length - 1);
  const at = indexIn(view, rows);
  const first = Math.max(0, Math.min(at - Math.floor(room / 2), rows.length - room));
  const lines = rows.slice(first, first + room).map((row, index): Line => ({
    text: rowLine(row, columns),
    style: first + index === at ? "reverse" : row.state === "running" ? "plain" : "bad",
  }));
  const none = rows.length === 0 ? [plain(view.filter === "" ? "No disks" : "No such disks")] : [];
  return [
    { text: titleLine(columns), style: "bold" },
    ...lines,
    ...none,
    ...trouble.map((text): Line => ({ text, style: "bad" })),
  ];
}

function openLines(view: View, { before, now }: Samples, columns: number): Line[] {
  const row = rowsOf(before, now).find(({ disk }) => disk.minor === view.selected);
  if (row === undefined) return [plain(`Minor ${view.selected} is not served any more`)];
  const earlier = before?.disks.find(({ minor }) => minor === view.selected) ?? null;
  return detailLines(row, earlier, columns).map((text, index): Line => ({
    text,
    style: index === 0 ? "bold" : "plain",
  }));
}

/** What is on the screen: as many lines as it has rows at most, none wider than it. */
export function screenLines(view: View, samples: Samples, size: Size): Line[] {
  const { columns, rows } = size;
  const { before, now } = samples;
  const seconds = before === null ? null : (now.atMs - before.atMs) / 1000;
  const room = roomIn(rows);
  const middle = view.isHelp
    ? window(HELP.map(plain), view.scrolled, room)
    : view.isOpen
    ? window(openLines(view, samples, columns), view.scrolled, room)
    : tableLines(view, samples, { columns, rows: room });
  const top = plain(summaryLine(rowsOf(before, now), seconds));
  const padding = Array.from({ length: Math.max(0, room - middle.length) }, () => plain(""));
  const lines = [top, ...middle, ...padding, bottom(view, columns)].slice(0, rows);
  return lines.map(({ text, style }) => ({
    text: style === "reverse" ? left(text, columns) : head(text, columns).trimEnd(),
    style,
  }));
}
