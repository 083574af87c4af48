import { respond } from "./responses.ts";
import type { Monitor } from "./monitor.ts";

/** Streams to all browsers together. */
const MOST_STREAMS = 64;
/** Messages that wait for a slow client; later ones are left out. */
const WAITING_MESSAGES = 4;
/** After so many messages that were left out in a row, the client is given up. */
const MOST_LEFT_OUT = 30;
/** How long one stream lasts. The browser then asks again, and shows its right again. */
const LONGEST_MS = 60 * 60 * 1000;

/** A message of a stream. */
export interface StreamMessage {
  readonly event: string;
  readonly data: unknown;
}

/** What is sent. */
export interface StreamContent {
  /** What a client gets once. */
  readonly first: () => StreamMessage;
  /** What it gets after each sample; null to end the stream. */
  readonly next: () => StreamMessage[] | null;
  /** Called when the stream begins; what it returns is called when the stream ends. */
  readonly begun?: () => () => void;
}

function bytesOf({ event, data }: StreamMessage): Uint8Array<ArrayBuffer> {
  // JSON has no line ends outside of escapes.
  return new TextEncoder().encode(`event: ${event}\ndata: ${JSON.stringify(data)}\n\n`);
}

/** The streams of server-sent events that are open. */
export class Streams {
  readonly #monitor: Monitor;
  readonly #onFault: (error: unknown) => void;
  readonly #open = new Set<() => void>();

  /** @param onFault Is told of faults of this program. */
  constructor(monitor: Monitor, onFault: (error: unknown) => void) {
    this.#monitor = monitor;
    this.#onFault = onFault;
  }

  /** How many are open. */
  get count(): number {
    return this.#open.size;
  }

  /** Opens a stream; null when there are too many. */
  open(content: StreamContent): Response | null {
    if (this.#open.size >= MOST_STREAMS) return null;
    let end = (): void => {};
    const body = new ReadableStream<Uint8Array<ArrayBuffer>>({
      start: (controller) => {
        end = this.#feed(controller, content);
      },
      cancel: () => end(),
    }, new CountQueuingStrategy({ highWaterMark: WAITING_MESSAGES }));
    return respond(body, {
      headers: { "content-type": "text/event-stream", "x-accel-buffering": "no" },
    });
  }

  #feed(
    controller: ReadableStreamDefaultController<Uint8Array<ArrayBuffer>>,
    { first, next, begun }: StreamContent,
  ): () => void {
    let leftOut = 0;
    const untilMs = performance.now() + LONGEST_MS;
    const put = (message: StreamMessage): void => controller.enqueue(bytesOf(message));
    const ended = begun?.();
    let isOver = false;
    const stop = (): void => {
      if (isOver) return;
      isOver = true;
      ended?.();
      unsubscribe();
      this.#open.delete(close);
    };
    const close = (): void => {
      stop();
      try {
        controller.close();
      } catch {
        // The client has closed it.
      }
    };
    const giveUp = (error: unknown): void => {
      stop();
      controller.error(error);
    };
    const send = (): void => {
      if ((controller.desiredSize ?? 0) <= 0) {
        if (++leftOut <= MOST_LEFT_OUT) return;
        return giveUp(new Error("The client does not read"));
      }
      leftOut = 0;
      const messages = performance.now() > untilMs ? null : next();
      if (messages === null) return close();
      messages.forEach(put);
    };
    const unsubscribe = this.#monitor.subscribe(() => {
      try {
        send();
      } catch (error) {
        this.#onFault(error);
        giveUp(error);
      }
    });
    this.#open.add(close);
    put(first());
    return stop;
  }

  /** Ends all of them. */
  close(): void {
    for (const close of [...this.#open]) close();
  }
}
