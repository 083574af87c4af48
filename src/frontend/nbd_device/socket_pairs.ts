import { Errno, SystemError } from "../../../ffi/errno.ts";
import { closeFile } from "../../../ffi/files.ts";
import { waitForDescriptor } from "../../../ffi/poll.ts";
import { enlargeSendBuffer, socketPair } from "../../../ffi/sockets.ts";
import type { Requests } from "../../vbd/requests.ts";
import { type ClientMemory, clientMemoryOf } from "../nbd/client_memory.ts";
import type { NbdConnections } from "../nbd/connections.ts";

/** Send buffer of the kernel's end, for requests with their data. */
const KERNEL_SEND_BUFFER_BYTES = 4 * 1024 * 1024;

/** Connections with the kernel that are not served yet: a pair of sockets and memory for each. */
export class SocketPairs {
  /** The sockets for the kernel. */
  readonly kernelEnds: number[] = [];
  readonly #ourEnds: number[] = [];
  readonly #memories: number[] = [];
  readonly #clientMemory: ClientMemory;

  /** Throws `SystemError`: EUSERS when the VBD has no memory for more clients, or EMFILE. */
  constructor(requests: Requests, count: number) {
    this.#clientMemory = clientMemoryOf(requests);
    try {
      for (let i = 0; i < count; i++) this.#open();
    } catch (error) {
      this.discard();
      throw error;
    }
  }

  #open(): void {
    const memory = this.#clientMemory.take();
    if (memory < 0) {
      throw new SystemError(Errno.EUSERS, "Cannot serve another client of the disk");
    }
    this.#memories.push(memory);
    const [ours, theirs] = socketPair();
    this.#ourEnds.push(ours);
    this.kernelEnds.push(theirs);
    enlargeSendBuffer(theirs, KERNEL_SEND_BUFFER_BYTES);
  }

  /** Closes this process's descriptors of the kernel's sockets. */
  closeKernelEnds(): void {
    for (const fd of this.kernelEnds.splice(0)) closeFile(fd);
  }

  /** Whether the kernel dropped a socket. Valid after `closeKernelEnds`. */
  get isRefused(): boolean {
    // Without events, poll reports only a hang-up or an error.
    return this.#ourEnds.some((fd) => waitForDescriptor(fd, 0, 0));
  }

  /** Adds the other ends to the connections of a server, which serves them from now on. */
  serve(connections: NbdConnections): void {
    this.closeKernelEnds();
    const memories = this.#memories.splice(0);
    this.#ourEnds.splice(0).forEach((fd, i) => {
      connections.add(fd, memories[i], { style: "none", handedOver: false });
    });
  }

  /** Closes all sockets that are not served. */
  discard(): void {
    this.closeKernelEnds();
    for (const fd of this.#ourEnds.splice(0)) closeFile(fd);
    for (const memory of this.#memories.splice(0)) this.#clientMemory.give(memory);
  }
}
