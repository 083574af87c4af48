import { cellsOf, chartTexts, choiceOf, chosenDisks, MOST_ROWS, sparkLine } from "./disk_list.ts";
import { chainSign, diskTexts, shownEvents } from "./disk_page.ts";
import { timeText } from "./format.ts";
import type { Monitor } from "./monitor.ts";
import type { LinesWatch } from "./lines_watch.ts";
import { textResponse } from "./responses.ts";
import { type StreamMessage, Streams } from "./stream.ts";

/** The streams of the pages: what each page's script gets. `client/messages.ts` has the types. */
export class LiveStreams {
  readonly #monitor: Monitor;
  readonly #requests: LinesWatch;
  readonly #findings: LinesWatch;
  readonly #streams: Streams;

  constructor(
    { monitor, requests, findings, onFault }: {
      monitor: Monitor;
      requests: LinesWatch;
      findings: LinesWatch;
      onFault: (error: unknown) => void;
    },
  ) {
    this.#monitor = monitor;
    this.#requests = requests;
    this.#findings = findings;
    this.#streams = new Streams(monitor, onFault);
  }

  close(): void {
    this.#streams.close();
  }

  /** Opens a stream: of a disk, or of the list; null when there is no such disk. */
  open(query: URLSearchParams): Response | null {
    const key = query.get("disk");
    const response = key === null ? this.#list(query) : this.#disk(key);
    if (response !== undefined) return response;
    if (key !== null && !this.#monitor.disks.has(key)) return null;
    return textResponse("Too many pages are open. Close some.", {
      status: 503,
      headers: { "retry-after": "10" },
    });
  }

  #list(query: URLSearchParams): Response | undefined {
    const monitor = this.#monitor;
    const choice = choiceOf(query);
    const next = (): StreamMessage => {
      const rows = chosenDisks(monitor, choice).slice(0, MOST_ROWS).map((disk) => [
        disk.key,
        cellsOf(disk),
        sparkLine(monitor.historyOf(disk.key)?.points ?? []),
      ]);
      return {
        event: "next",
        data: {
          point: monitor.history.points.at(-1),
          now: chartTexts(monitor.totals),
          problem: monitor.problem,
          rows,
        },
      };
    };
    const first = (): StreamMessage => ({
      event: "first",
      data: { points: monitor.history.points },
    });
    return this.#streams.open({ first, next: () => [next()] }) ?? undefined;
  }

  #disk(key: string): Response | undefined {
    const monitor = this.#monitor;
    const disk = monitor.disks.get(key);
    if (disk === undefined) return undefined;
    const history = monitor.historyOf(key);
    const first = (): StreamMessage => ({
      event: "first",
      data: { points: history?.points ?? [], columns: history?.columns ?? [] },
    });
    return this.#streams.open({
      first,
      next: () => this.#nextOf(key),
      begun: () => {
        const ends = [this.#requests, this.#findings].map((watch) => watch.watch(key, disk.sample));
        return () => ends.forEach((end) => end());
      },
    }) ?? undefined;
  }

  #nextOf(key: string): StreamMessage[] | null {
    const monitor = this.#monitor;
    const disk = monitor.disks.get(key);
    // It is not served any more.
    if (disk === undefined) return [{ event: "gone", data: {} }];
    const history = monitor.historyOf(key);
    const events = shownEvents(monitor.events.filter((event) => event.key === key));
    return [{
      event: "next",
      data: {
        point: history?.points.at(-1),
        column: history?.columns.at(-1),
        now: chartTexts(disk.activity),
        problem: monitor.problem,
        texts: diskTexts(disk),
        requests: this.#requests.linesOf(key),
        findings: this.#findings.linesOf(key),
        events: events.map(({ timeMs, text, isProblem }) => [timeText(timeMs), text, isProblem]),
        chain: chainSign(disk),
      },
    }];
  }
}
