/**
 * Tapdisks at control sockets, for a tapback in a process of its own: they know who has which ring.
 *
 * @module
 */
import {
  decodeConnect,
  decodeGuestDevice,
  type GuestRing,
} from "../../../src/control/protocol/guest_ring.ts";
import { encodeError } from "../../../src/control/protocol/answers.ts";
import { encodeDiskInfo } from "../../../src/control/protocol/disk_info.ts";
import {
  encodePlain,
  MESSAGE_BYTES,
  messageCookie,
  MessageType,
  messageType,
} from "../../../src/control/protocol/message.ts";
import { Errno } from "../../../ffi/errno.ts";

/** A tapdisk with one disk. */
export class PlayedControl {
  readonly #listener: Deno.UnixListener;
  readonly rings = new Map<string, GuestRing>();
  /** The types of the messages that it got. */
  readonly messages: number[] = [];

  /** Listens as tapdisk `pid` in a control folder. */
  constructor(
    folder: string,
    readonly pid: number,
    readonly minor: number,
    public sectors: number,
  ) {
    this.#listener = Deno.listen({ transport: "unix", path: `${folder}/ctl${pid}` });
    void this.#serve();
  }

  async #serve(): Promise<void> {
    for await (const connection of this.#listener) void this.#answer(connection);
  }

  async #answer(connection: Deno.UnixConn): Promise<void> {
    const message = new Uint8Array(MESSAGE_BYTES);
    let received = 0;
    while (received < MESSAGE_BYTES) {
      const got = await connection.read(message.subarray(received));
      if (got === null) return connection.close();
      received += got;
    }
    const answer = this.#do(message);
    // In two parts, as a stream may come.
    await connection.write(answer.subarray(0, 100));
    await connection.write(answer.subarray(100));
    connection.close();
  }

  #do(message: Uint8Array): Uint8Array {
    const type = messageType(message);
    const minor = messageCookie(message);
    this.messages.push(type);
    const refuse = (error: number): Uint8Array => encodeError(minor, { error, message: "" });
    switch (type) {
      case MessageType.DISK_INFO: {
        if (minor !== this.minor) return refuse(Errno.ENODEV);
        const info = { sectors: this.sectors, sectorSizeBytes: 512, info: 0 };
        return encodeDiskInfo(MessageType.DISK_INFO_RSP, minor, info);
      }
      case MessageType.XENBLKIF_CONNECT: {
        const ring = decodeConnect(message);
        const key = `${ring.domain}/${ring.device}`;
        if (this.rings.has(key)) return refuse(Errno.EALREADY);
        this.rings.set(key, ring);
        return encodePlain(MessageType.XENBLKIF_CONNECT_RSP, minor);
      }
      case MessageType.XENBLKIF_DISCONNECT: {
        const { domain, device } = decodeGuestDevice(message);
        if (!this.rings.delete(`${domain}/${device}`)) return refuse(Errno.ENODEV);
        return encodePlain(MessageType.XENBLKIF_DISCONNECT_RSP, minor);
      }
      default:
        return refuse(Errno.EINVAL);
    }
  }

  close(): void {
    this.#listener.close();
  }
}
