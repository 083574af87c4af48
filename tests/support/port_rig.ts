/**
 * Ports that disks share, on a loop with real sockets and a clock that the test advances, and clients of
 * them with and without TLS.
 *
 * @module
 */
import assert from "node:assert/strict";
import { tcpAddress } from "../../ffi/addresses.ts";
import { Errno } from "../../ffi/errno.ts";
import { libssl } from "../../ffi/libssl.ts";
import { beginConnect } from "../../ffi/sockets.ts";
import { TlsContext } from "../../ffi/tls_context.ts";
import { TlsStream } from "../../ffi/tls_stream.ts";
import { REQUEST_SLOTS } from "../../src/driver/driver.ts";
import { NbdConnections } from "../../src/frontend/nbd/connections.ts";
import { NbdPorts, type ServeRequest } from "../../src/frontend/nbd/ports.ts";
import { findPreSharedKey } from "../../src/tls/psk_file.ts";
import { createDynamic } from "../../src/vhd/create.ts";
import { SeenPages } from "./metrics.ts";
import { infoContent, joined, Opt, packed, Rep } from "./nbd_client.ts";
import { PSK_TEXT } from "./pki.ts";
import { PlayedLoop, SocketEnd } from "./played_loop.ts";
import { Simulation } from "./sim.ts";

/** The runtime reports a library that is opened within a test as a leak. */
export const hasTls = ((): boolean => {
  try {
    libssl();
    return true;
  } catch {
    return false;
  }
})();

export const MIB = 1 << 20;
const DISK_BYTES = 64 * MIB;
const OPTION_MAGIC = 0x49484156454f5054n;
const CLIENT_FLAGS = packed([4, 3]);
const LOCALHOST = "127.0.0.1";

export const PLAIN: ServeRequest = {
  addresses: [LOCALHOST],
  port: 0,
  name: "disk",
  tls: { mode: "off", certificates: null, psk: null, verifyPeer: false },
  maxClients: 100,
  maxClientsPerAddress: 100,
};

export const folder = Deno.makeTempDirSync({ prefix: "blktap-test-" });
const keys = `${folder}/keys.psk`;
Deno.writeTextFileSync(keys, PSK_TEXT);
addEventListener("unload", () => Deno.removeSync(folder, { recursive: true }));

export const KEYED: ServeRequest = {
  ...PLAIN,
  tls: { mode: "require", certificates: null, psk: keys, verifyPeer: false },
};

export function option(
  code: number,
  content: Uint8Array = new Uint8Array(0),
): Uint8Array<ArrayBuffer> {
  return joined(packed([8, OPTION_MAGIC], [4, code], [4, content.length]), content);
}

/** Types of the replies to options, whose contents are passed over. */
export function replyTypes(bytes: Uint8Array): number[] {
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.length);
  const types: number[] = [];
  for (let at = 0; at + 20 <= bytes.length; at += 20 + view.getUint32(at + 16)) {
    assert.equal(view.getUint32(at), 0x0003e889);
    types.push(view.getUint32(at + 12));
  }
  return types;
}

/** A client's end with TLS, by the same class as the server's. */
export class TlsEnd {
  readonly stream: TlsStream;
  readonly context: TlsContext;

  constructor(readonly rig: Rig, readonly end: SocketEnd, username = "alice") {
    const find = (): ReturnType<typeof findPreSharedKey> => findPreSharedKey(keys, username);
    this.context = new TlsContext("client", { identity: username, find });
    this.stream = new TlsStream(end.fd, this.context);
  }

  /** Does the handshake; returns 0 or -errno. */
  handshake(): number {
    for (let i = 0; i < 100; i++) {
      const result = this.stream.handshake();
      if (result !== -Errno.EAGAIN) {
        this.rig.run();
        return result;
      }
      this.rig.run();
    }
    return -Errno.ETIMEDOUT;
  }

  send(...parts: readonly Uint8Array[]): void {
    for (const part of parts) {
      for (let at = 0; at < part.length;) {
        const sent = this.stream.sendBytes(part.subarray(at));
        if (sent > 0) at += sent;
        else assert.equal(sent, -Errno.EAGAIN);
        this.rig.run();
      }
    }
    this.stream.flush();
    this.rig.run();
  }

  /** What has come, at most `most` bytes; null at the end of the stream. */
  receive(most = Infinity): Uint8Array | null {
    const buffer = new Uint8Array(16 * 1024);
    const all: Uint8Array[] = [];
    for (let total = 0; total < most;) {
      const got = this.stream.receiveBytes(buffer);
      if (got <= 0) {
        if (got === 0 || got !== -Errno.EAGAIN) return all.length === 0 ? null : joined(...all);
        break;
      }
      all.push(buffer.slice(0, got));
      total += got;
      this.rig.run();
    }
    return joined(...all);
  }

  close(): void {
    this.stream.close();
    this.context.close();
  }
}

/** Disks on simulated storage, and the ports of their process. */
export class Rig {
  readonly simulation = new Simulation({ seed: 1, metrics: new SeenPages() });
  readonly loop = new PlayedLoop();
  readonly log: string[] = [];
  readonly ports = new NbdPorts(this.loop, (line) => void this.log.push(line));
  readonly device;
  readonly connections: NbdConnections;
  readonly port: number;
  readonly #ends = new Set<SocketEnd>();
  readonly #tls: TlsEnd[] = [];

  constructor(request: ServeRequest) {
    createDynamic("/disk.vhd", { storage: this.simulation.disk, sizeBytes: DISK_BYTES });
    this.device = this.simulation.open("vhd:/disk.vhd");
    const log = (line: string): void => void this.log.push(line);
    const meter = this.device.vbd.meters.open({ of: "nbd", minor: 0 }, REQUEST_SLOTS);
    this.connections = new NbdConnections(this.loop, this.device.vbd, { log, meter });
    this.port = this.ports.serve(this.connections, request).port;
  }

  connect(): SocketEnd {
    const end = new SocketEnd(beginConnect(tcpAddress(LOCALHOST, this.port), "the port"));
    this.#ends.add(end);
    this.run();
    return end;
  }

  /** Runs both loops. The disk's clock goes on only while the disk has something to do. */
  run(): void {
    for (let i = 0; i < 30; i++) {
      this.loop.poll();
      const { scheduler } = this.simulation;
      if (this.device.vbd.requests.outstanding === 0) scheduler.addTimer(0, () => {});
      scheduler.turn();
      this.#fireDue();
    }
  }

  /** Fires the timers that are due without letting time pass. */
  #fireDue(): void {
    this.loop.addTimer(0, () => {});
    this.loop.turn();
  }

  exchange(end: SocketEnd, ...parts: readonly Uint8Array[]): Uint8Array | null {
    end.send(...parts);
    this.run();
    return end.receive();
  }

  disconnect(end: SocketEnd): void {
    this.#ends.delete(end);
    end.close();
    this.run();
  }

  /** A client behind the greeting. */
  greeted(): SocketEnd {
    const end = this.connect();
    assert.equal(end.receive()?.length, 18);
    this.exchange(end, CLIENT_FLAGS);
    return end;
  }

  /** A client with TLS, before it has said more. */
  secured(username?: string): TlsEnd {
    const end = this.greeted();
    const ack = this.exchange(end, option(Opt.StartTls));
    assert.deepEqual(replyTypes(ack ?? new Uint8Array(0)), [Rep.Ack]);
    const tls = new TlsEnd(this, end, username);
    this.#tls.push(tls);
    return tls;
  }

  /** A client with TLS that has entered the disk. */
  entered(): TlsEnd {
    const tls = this.secured();
    assert.equal(tls.handshake(), 0, tls.stream.why);
    tls.send(option(Opt.Go, infoContent("disk")));
    assert.deepEqual(replyTypes(tls.receive() ?? new Uint8Array(0)).at(-1), Rep.Ack);
    return tls;
  }

  close(): void {
    for (const tls of this.#tls) tls.close();
    for (const end of this.#ends) end.close();
    this.run();
    this.ports.unserve(this.connections);
    this.connections.close();
    this.run();
    this.device.close();
    this.simulation.close();
  }
}
