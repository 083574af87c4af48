import { type Done, Errno, SystemError } from "../../ffi/errno.ts";
import type { ImageDriver, RequestSink } from "../driver/driver.ts";
import { describeFault } from "../scheduler/faults.ts";
import { closeImage, dropImages, type ImageWish, openImages } from "./chain.ts";
import { OpenedFiles } from "./opened_files.ts";
import type { DeviceContext } from "./vbd_context.ts";

/** How long to wait between two looks whether the images of a disk that failed are idle. */
const ABANDON_AGAIN_MS = 20;

/** The open images of a device, the top one first. */
export class ImageStack {
  readonly #context: DeviceContext;
  #images: ImageDriver[] = [];
  /** Those that are being closed. */
  #closing: ImageDriver[] = [];
  /** Merges on files that have been closed since. */
  #earlierMerges = 0;
  #opened: OpenedFiles;
  #openedMs = 0;

  constructor(context: DeviceContext) {
    this.#context = context;
    this.#opened = new OpenedFiles(context.files);
  }

  /** The images that are open and not being closed. */
  get images(): readonly ImageDriver[] {
    return this.#images;
  }

  /**
   * Opens an image and the chain below it; returns the image.
   *
   * @param isSame The files must be those that were open before (ESTALE).
   * @param leastSectors Users know this size, and may have data up to there: a smaller image is
   * refused (EMEDIUMTYPE).
   * @throws {SystemError}
   */
  open(
    wish: ImageWish,
    { name, sink, leastSectors, isSame }: {
      name: string;
      sink: RequestSink;
      leastSectors: number;
      isSame: boolean;
    },
  ): ImageDriver {
    const files = new OpenedFiles(this.#context.files, isSame ? this.#opened : null);
    const images = openImages(wish, { ...this.#context, files }, sink);
    const [top] = images;
    if (top.sectors < leastSectors) {
      dropImages(images, this.#context.log);
      const sizes = `it has ${top.sectors} sectors, the device ${leastSectors}`;
      throw new SystemError(Errno.EMEDIUMTYPE, `Cannot go on with ${name} (${sizes})`);
    }
    this.#images = images;
    this.#opened = files;
    this.#openedMs = this.#context.scheduler.nowMs();
    this.#context.tracing?.opened(images);
    return top;
  }

  /**
   * See {@linkcode OpenedFiles.findAgain}.
   *
   * @param refusal Why nothing is to be opened anew, whatever is found; null for nothing.
   */
  findAgain(refusal: string | null, found: (why: string | null) => void): void {
    const opened = this.#opened;
    opened.requireOwn();
    if (refusal !== null) return found(refusal);
    const { queue: { health }, scheduler } = this.#context;
    const heardOf = (file: number): number => Math.max(health.lastSuccessMs(file), this.#openedMs);
    opened.findAgain(scheduler, heardOf, (why) => {
      found(this.#opened === opened ? why : "they were opened anew meanwhile");
    });
  }

  /** See {@linkcode OpenedFiles.lookUp}. */
  lookUp(found: (why: string | null) => void): void {
    this.#opened.lookUp(this.#context.scheduler, found);
  }

  /** See {@linkcode OpenedFiles.stray}. */
  get stray(): string | null {
    return this.#images.length === 0 ? null : this.#opened.stray;
  }

  /** Their files at the disk queue. */
  get files(): readonly number[] {
    return this.#images.flatMap(({ file }) => file ?? []);
  }

  /** The path of one of these files. */
  pathOf(file: number): string | null {
    return this.#images.find((image) => image.file === file)?.spec.path ?? null;
  }

  /** Closes all images; no request may be at them. */
  close(name: string, done: Done): void {
    const images = this.#images;
    this.#earlierMerges = this.merges;
    this.#images = [];
    this.#closing = images;
    let left = images.length;
    let firstError: SystemError | null = null;
    if (left === 0) return done(null);
    const closed: Done = (error) => {
      firstError ??= error;
      // A secondary image may end its close after its device has failed, and runs again.
      const isAbandoned = this.#context.faults.failed || this.#closing !== images;
      if (--left > 0 || isAbandoned) return;
      this.#closing = [];
      done(firstError === null ? null : notInOrder(name, firstError));
    };
    for (const image of images) {
      try {
        closeImage(image, this.#context.log, closed);
      } catch (error) {
        // This fails the device, which ends its close or pause with an error.
        return this.#context.scheduler.contain(error, this.#context.faults);
      }
    }
  }

  /** The device is to be paused or closed: what waits only for its share of the disk goes on. */
  drain(): void {
    this.#tellAll((image) => image.drain?.());
  }

  /** Ends at once what waits for others, such as servers. */
  hurry(): void {
    this.#tellAll((image) => image.giveUp?.());
  }

  #tellAll(tell: (image: ImageDriver) => void): void {
    for (const image of this.#images) {
      try {
        tell(image);
      } catch (error) {
        return this.#context.scheduler.contain(error, this.#context.faults);
      }
    }
  }

  /**
   * Closes the images of a disk that failed as they are, as soon as no operation is under way on
   * their files.
   */
  abandon(done: () => void): void {
    const { queue, scheduler, log, pieces } = this.#context;
    const images = [...this.#images, ...this.#closing];
    const isBusy = ({ file, pending = 0 }: ImageDriver): boolean =>
      pending > 0 || (file !== undefined && queue.pendingOf(file) > 0);
    if (images.some(isBusy)) {
      return void scheduler.addTimer(ABANDON_AGAIN_MS, () => this.abandon(done));
    }
    this.#earlierMerges = this.merges;
    this.#images = [];
    this.#closing = [];
    for (const image of images) {
      try {
        image.abandon();
      } catch (error) {
        log(`Cannot let go of ${image.spec.path}: ${describeFault(error)}`);
      }
    }
    pieces.giveAll();
    done();
  }

  /** Operations of this device that went to the disk with a neighbour. */
  get merges(): number {
    const { queue } = this.#context;
    const mergesOf = (file?: number): number => file === undefined ? 0 : queue.mergesOf(file);
    return this.#images.reduce((sum, { file }) => sum + mergesOf(file), this.#earlierMerges);
  }
}

function notInOrder(name: string, { errno }: SystemError): SystemError {
  const message = `Cannot close ${name} in order (see the log)`;
  return new SystemError(errno, message, { message });
}
