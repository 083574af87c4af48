/**
 * An NBD server of one simulated disk, whose clients lose their connections. The disk may be slow at
 * single writes.
 *
 * @module
 */
import { closeFile } from "../../ffi/files.ts";
import { tcpAddress } from "../../ffi/addresses.ts";
import {
  acceptTcp,
  beginConnect,
  boundAddress,
  enlargeSendBuffer,
  resetOnClose,
  socketPair,
  tcpListen,
} from "../../ffi/sockets.ts";
import { waitForDescriptor } from "../../ffi/poll.ts";
import { EPOLLIN } from "../../ffi/epoll.ts";
import { clientMemoryOf } from "../../src/frontend/nbd/client_memory.ts";
import { NbdConnections } from "../../src/frontend/nbd/connections.ts";
import { Cmd, joined, requestHeader } from "./nbd_client.ts";
import { PlayedLoop, SocketEnd } from "./played_loop.ts";
import { SECTOR_BYTES, SimulatedDevice, Simulation } from "./sim.ts";
import { createFixed } from "../../src/vhd/create.ts";

/** How a client is connected, and how its end is closed. */
export const TRANSPORTS = ["UNIX", "TCP", "TCP with a reset"] as const;
/** One of `TRANSPORTS`. */
export type Transport = (typeof TRANSPORTS)[number];

function tcpPair(): [number, number] {
  const listener = tcpListen(tcpAddress("127.0.0.1", 0), "a test", { backlog: 4, isDual: false });
  const theirs = beginConnect(boundAddress(listener), "a test");
  waitForDescriptor(listener, EPOLLIN, Infinity);
  const ours = acceptTcp(listener, new Uint8Array(128));
  closeFile(listener);
  return [ours, theirs];
}

const SEND_BUFFER_BYTES = 1 << 20;

/** One client's connection, as the client sees it. */
export class OrderClient {
  readonly #end: SocketEnd;
  /** The cookies of the requests that were answered, in order. */
  readonly answered: number[] = [];
  /** The data of the answer to a read, after which the client asks for nothing else. */
  data: Uint8Array | null = null;
  isClosed = false;
  #isReading = false;

  constructor(readonly transport: Transport, fd: number) {
    this.#end = new SocketEnd(fd);
    enlargeSendBuffer(fd, SEND_BUFFER_BYTES);
  }

  /** Writes sectors of the same bytes. */
  write(sector: number, count: number, byte: number, cookie = byte): void {
    const [offset, length] = [sector * SECTOR_BYTES, count * SECTOR_BYTES];
    const header = requestHeader({ command: Cmd.Write, offset, length, cookie });
    this.#end.send(joined(header, new Uint8Array(length).fill(byte)));
  }

  /** Sends a request that has no data. */
  ask(
    command: number,
    sector: number,
    count: number,
    { cookie, flags = 0 }: { cookie: number; flags?: number },
  ): void {
    const [offset, length] = [sector * SECTOR_BYTES, count * SECTOR_BYTES];
    this.#isReading = command === Cmd.Read;
    this.#end.send(requestHeader({ command, offset, length, cookie, flags }));
  }

  /** Writes 1, 2, 3 and so on to sectors, a request for each, and may say goodbye, in one message. */
  writeLast(sector: number, count: number, saysGoodbye = true): void {
    const writes = Array.from({ length: count }, (_, i) => {
      const [offset, length] = [(sector + i) * SECTOR_BYTES, SECTOR_BYTES];
      const header = requestHeader({ command: Cmd.Write, offset, length, cookie: 1 + i });
      return joined(header, new Uint8Array(length).fill(1 + i));
    });
    const goodbye = saysGoodbye ? [requestHeader({ command: Cmd.Disc })] : [];
    this.#end.send(joined(...writes, ...goodbye));
  }

  sayGoodbye(): void {
    this.#end.send(requestHeader({ command: Cmd.Disc }));
  }

  /** Takes replies in. */
  look(): void {
    const bytes = this.#end.receive();
    const view = new DataView(bytes?.buffer ?? new ArrayBuffer(0));
    for (let at = 0; at < view.byteLength; at += 16) {
      if (view.getUint32(at + 4) === 0) this.answered.push(view.getUint32(at + 12));
      if (!this.#isReading) continue;
      this.data = bytes?.subarray(16) ?? null;
      break;
    }
  }

  close(): void {
    if (this.isClosed) return;
    this.isClosed = true;
    if (this.transport === "TCP with a reset") resetOnClose(this.#end.fd);
    this.#end.close();
  }
}

/** The server. */
export class OrderRig {
  readonly loop = new PlayedLoop();
  readonly simulation: Simulation;
  readonly device: SimulatedDevice;
  readonly connections: NbdConnections;
  readonly clients: OrderClient[] = [];
  /** How much longer each of the next writes to the image takes, milliseconds. */
  readonly delaysMs: number[] = [];

  constructor({ sizeBytes, seed = 1, latencyMs = 0 }: {
    sizeBytes: number;
    seed?: number;
    latencyMs?: number;
  }) {
    this.simulation = new Simulation({ seed, latencyMs });
    createFixed("/disk.vhd", { storage: this.simulation.disk, sizeBytes });
    this.device = this.simulation.open("vhd:/disk.vhd");
    this.connections = new NbdConnections(this.loop, this.device.vbd);
    this.simulation.connection.delayOf = (kind): number =>
      kind === "write" ? this.delaysMs.shift() ?? 0 : 0;
  }

  connect(transport: Transport): OrderClient {
    const [ours, theirs] = transport === "UNIX" ? socketPair() : tcpPair();
    const memory = clientMemoryOf(this.device.vbd.requests).take();
    this.connections.add(ours, memory, { style: "none", handedOver: false });
    const client = new OrderClient(transport, theirs);
    this.clients.push(client);
    return client;
  }

  /** Takes in what clients have sent, and sends replies; time does not pass. */
  poll(): void {
    for (let i = 0; i < 5; i++) this.loop.poll();
    for (const client of this.clients) if (!client.isClosed) client.look();
  }

  /** Lets the disk end one operation, and runs on. False when nothing happens any more. */
  turn(): boolean {
    this.poll();
    const isAny = this.simulation.scheduler.turn();
    this.poll();
    return isAny;
  }

  /** Lets a millisecond pass. */
  pass(): void {
    this.simulation.scheduler.addTimer(1, () => {});
    this.turn();
  }

  /** Runs until a condition is met. */
  until(what: string, done: () => boolean): void {
    for (let turns = 0; !done(); turns++) {
      if (!this.turn() && turns > 10 && !done()) throw new Error(`${what} never came`);
    }
  }

  /** Runs until no request is open. */
  settle(): void {
    this.until("the end of all requests", () => this.device.vbd.requests.outstanding === 0);
    for (let i = 0; i < 10; i++) this.turn();
  }

  /** The first byte of a sector. */
  byteAt(sector: number): number {
    const read = this.device.read(sector, 1);
    this.device.settle();
    if (read.data === null) throw new Error(`Sector ${sector} cannot be read`);
    return read.data[0];
  }

  close(): void {
    for (const client of this.clients) client.close();
    this.connections.close();
    this.settle();
    this.device.close();
    this.simulation.close();
  }
}
