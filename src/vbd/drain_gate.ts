import { assert } from "../../ffi/assert.ts";
import type { ImageDriver } from "../driver/driver.ts";
import type { Reopening } from "./reopening.ts";
import type { RetryLimits } from "./retry.ts";

/** What requests run against: an open image, and how it is to be treated. */
export interface RequestTarget {
  readonly image: ImageDriver;
  /** The image's name, for the log. */
  readonly name: string;
  readonly readOnly: boolean;
  readonly retry: RetryLimits;
  /** The files of the image and of those below it, at the disk queue. */
  readonly files: readonly number[];
  /** The path of one of them. */
  pathOf(file: number): string | null;
  /** Opens it anew when its server does not know its files; failures before that go on to count. */
  readonly reopening: Pick<Reopening, "isRunning" | "consider">;
}

/**
 * The gate between requests and the image. It counts the requests that are at the image. Once it is
 * closed it lets no more of them in, and says when the last one has left, so that the image can be
 * closed.
 */
export class DrainGate {
  #target: RequestTarget | null = null;
  #holds = false;
  #inFlight = 0;
  /** Called when the last request has left; null while the gate is not being drained. */
  #drained: (() => void) | null = null;

  /** What requests run against; null without an image. A closed gate has it until it is drained. */
  get target(): RequestTarget | null {
    return this.#target;
  }

  /** The image; there must be one. */
  get image(): ImageDriver {
    assert(this.#target !== null, "Requests go to an image while there is one");
    return this.#target.image;
  }

  /** Whether requests may go to the image. */
  get isOpen(): boolean {
    return this.#target !== null && this.#drained === null;
  }

  /** Whether requests that come to a closed gate wait for it to open; otherwise they fail. */
  get holds(): boolean {
    return this.#holds;
  }

  /** How many requests are at the image. */
  get inFlight(): number {
    return this.#inFlight;
  }

  /** Opens to an image. */
  open(target: RequestTarget): void {
    this.#target = target;
    this.#holds = false;
  }

  /**
   * Closes. The next `finish` that finds no request at the image calls back.
   *
   * @param holds Whether requests wait for it to open again.
   */
  close(holds: boolean, drained: () => void): void {
    if (this.#inFlight === 0) this.#target = null;
    this.#holds = holds;
    this.#drained = drained;
  }

  /** Opens again, to the same image; false when the gate was drained, and the image is gone. */
  reopen(): boolean {
    if (this.#drained === null) return false;
    this.#drained = null;
    this.#holds = false;
    return true;
  }

  /** A request goes to the image. */
  enter(): void {
    this.#inFlight++;
  }

  /** A request leaves the image; true when it is the last one that a closed gate waited for. */
  leave(): boolean {
    assert(this.#inFlight > 0, "A request leaves the image once");
    this.#inFlight--;
    return this.#inFlight === 0 && this.#drained !== null;
  }

  /** Calls back if the gate is closed, and no request is at the image. */
  finish(): void {
    const drained = this.#drained;
    if (drained === null || this.#inFlight > 0) return;
    this.#drained = null;
    this.#target = null;
    drained();
  }

  /** The image has failed: all requests have left it, and those that come fail. */
  fail(): void {
    this.#target = null;
    this.#holds = false;
    this.#drained = null;
    this.#inFlight = 0;
  }
}
