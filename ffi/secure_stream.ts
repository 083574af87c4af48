/** What a connection with TLS does in place of recvmsg(2) and sendmsg(2). */
export interface SecureStream {
  /** Why it failed; empty for an error of the socket. */
  readonly why: string;
  /** Whether there is received data, or an end, that the socket does not show any more. */
  readonly hasPending: boolean;
  /** Whether encrypted bytes wait for room in the socket. */
  readonly hasUnsent: boolean;
  /** Whether the kernel encrypts and decrypts, and the socket has all that there is of it. */
  readonly isInKernel: boolean;
  /** As recvmsg(2) without waiting: bytes, 0 at the end of the stream, or -errno. */
  receive(msghdr: Deno.PointerObject, view: DataView, iovecsAt: number, iovecs: number): number;
  /** As sendmsg(2) without waiting. Bytes that it took may still wait here; `flush` sends them. */
  send(msghdr: Deno.PointerObject, view: DataView, iovecsAt: number, iovecs: number): number;
  /** Sends encrypted bytes that wait. Returns 0 when all have left, else -errno. */
  flush(): number;
  /** Tells the peer that this was all, if that can be sent at once. */
  close(): void;
}
