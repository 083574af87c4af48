import { Errno, SystemError } from "../../../ffi/errno.ts";
import { closeFile } from "../../../ffi/files.ts";
import { waitForDescriptor } from "../../../ffi/poll.ts";
import { enlargeSendBuffer, socketPair } from "../../../ffi/sockets.ts";
import type { Requests } from "../../vbd/requests.ts";
import type { NbdConnections } from "../nbd/connections.ts";

/** Room for requests with their data on the way to us. */
const KERNEL_SEND_BUFFER_BYTES = 4 * 1024 * 1024;

/** Connections with the kernel that nobody serves yet: pairs of sockets, and memory for each. */
export class SocketPairs {
  /** What the kernel is given. */
  readonly kernelEnds: number[] = [];
  readonly #ourEnds: number[] = [];
  readonly #memories: number[] = [];
  readonly #requests: Requests;

  /** Throws `SystemError`: EUSERS when the VBD has no room for so many clients, EMFILE. */
  constructor(requests: Requests, count: number) {
    this.#requests = requests;
    try {
      for (let i = 0; i < count; i++) this.#open();
    } catch (error) {
      this.discard();
      throw error;
    }
  }

  #open(): void {
    const memory = this.#requests.takeClientMemory();
    if (memory < 0) {
      throw new SystemError(Errno.EUSERS, "The disk has as many clients as it serves");
    }
    this.#memories.push(memory);
    const [ours, theirs] = socketPair();
    this.#ourEnds.push(ours);
    this.kernelEnds.push(theirs);
    enlargeSendBuffer(theirs, KERNEL_SEND_BUFFER_BYTES);
  }

  /** The kernel has taken its ends, or will not: they are closed here. */
  closeKernelEnds(): void {
    for (const fd of this.kernelEnds.splice(0)) closeFile(fd);
  }

  /** Whether the kernel dropped an end; ask after `closeKernelEnds`. */
  get isRefused(): boolean {
    // Nothing is asked for: only a hang-up is told.
    return this.#ourEnds.some((fd) => waitForDescriptor(fd, 0, 0));
  }

  /** Hands our ends over; requests that wait there are answered from now on. */
  serve(connections: NbdConnections): void {
    this.closeKernelEnds();
    const memories = this.#memories.splice(0);
    this.#ourEnds.splice(0).forEach((fd, i) => {
      connections.add(fd, memories[i], { negotiated: true });
    });
  }

  /** Closes what was not handed over. */
  discard(): void {
    this.closeKernelEnds();
    for (const fd of this.#ourEnds.splice(0)) closeFile(fd);
    for (const memory of this.#memories.splice(0)) this.#requests.giveClientMemory(memory);
  }
}
