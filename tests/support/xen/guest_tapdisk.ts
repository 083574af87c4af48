/**
 * A tapdisk in the process of the test, at its control socket, with one disk in memory and one guest:
 * the real code of a tapdisk but for Xen, which is played.
 *
 * @module
 */
import assert from "node:assert/strict";
import { closeFile } from "../../../ffi/files.ts";
import { Arena } from "../../../ffi/memory.ts";
import { receiveAt, sendAt, socketPair } from "../../../ffi/sockets.ts";
import { controlCommands } from "../../../src/control/daemon/commands.ts";
import { Devices } from "../../../src/control/daemon/devices.ts";
import { ControlServer } from "../../../src/control/daemon/server.ts";
import { allocateMinor } from "../../../src/control/minors/minors.ts";
import { controlSocketPath } from "../../../src/control/paths.ts";
import { encodePlain, MessageType, messageType } from "../../../src/control/protocol/message.ts";
import { encodeOpen, OPEN_DEFAULTS } from "../../../src/control/protocol/open_request.ts";
import { Logger } from "../../../src/log/log.ts";
import { RealDevice } from "../real_device.ts";
import { type GuestOptions, type GuestRequest, PlayedGuest } from "./played_guest.ts";
import { type Events, PlayedXen } from "./played_xen.ts";

const IMAGE = "ram:4";
const LIMIT_MS = 60_000;
const STEP_MS = 5;

/** Events of the real loop. */
export function realEvents(): Events {
  const peers = new Map<number, number>();
  const byte = new Arena(1);
  return {
    openEvent(): number {
      const [own, other] = socketPair();
      peers.set(own, other);
      return own;
    },
    signal: (fd) => void sendAt(peers.get(fd) ?? -1, byte.address, 1),
    taken: (fd) => void receiveAt(fd, byte.address, byte.sizeBytes),
    closeEvent(fd): void {
      closeFile(fd);
      closeFile(peers.get(fd) ?? -1);
    },
  };
}

/** The tapdisk. Its control folder is that of the environment. */
export class GuestTapdisk {
  readonly #real = new RealDevice(IMAGE);
  readonly #server: ControlServer;
  readonly #commands: ReturnType<typeof controlCommands>;
  readonly log: string[] = [];
  readonly minor: number;
  readonly guest: PlayedGuest;

  /** @param image The disk; by default one in memory. */
  constructor(guest: GuestOptions, image = IMAGE) {
    const { scheduler, context } = this.#real;
    const xen = new PlayedXen(realEvents());
    const write = (_level: string, message: string): void => void this.log.push(message);
    const log = new Logger([{ write, reopen() {}, close() {} }]);
    const devices = new Devices({
      scheduler,
      contextOf: () => context,
      frontends: [],
      makers: [],
      log,
      emptied: () => {},
      runExclusive: (minor, job) => this.#server.runExclusive(minor, job),
      failed: () => {},
      xen,
      processors: () => ({ idle: 0, all: 0 }),
    });
    const commands = controlCommands(devices);
    this.#server = new ControlServer(scheduler, controlSocketPath(Deno.pid), { commands, log });
    this.minor = allocateMinor();
    this.guest = new PlayedGuest(xen, guest);
    const orders = [
      encodePlain(MessageType.ATTACH, this.minor),
      encodeOpen(this.minor, { ...OPEN_DEFAULTS, image, device: "none" }),
    ];
    this.#commands = commands;
    for (const order of orders) this.#order(order);
  }

  /** Carries out a message; returns whether it was answered. */
  #order(message: Uint8Array<ArrayBuffer>): () => boolean {
    let isAnswered = false;
    this.#commands.get(messageType(message))?.run(message, () => isAnswered = true, null, null);
    return () => isAnswered;
  }

  /** The nodes with which the guest tells of its ring. */
  get ringNodes(): Record<string, string> {
    const { references, port } = this.guest.ring;
    return {
      "ring-page-order": String(Math.log2(references.length)),
      ...Object.fromEntries(
        references.map((reference, i) => [`ring-ref${i}`, String(reference)]),
      ),
      "ring-ref": String(references[0]),
      "event-channel": String(port),
      protocol: "x86_64-abi",
    };
  }

  /** Runs the loop until something holds. */
  async until(what: string, holds: () => boolean): Promise<void> {
    const { scheduler } = this.#real;
    const untilMs = performance.now() + LIMIT_MS;
    const look = (): void => {
      if (holds() || performance.now() > untilMs) scheduler.stop();
      else scheduler.addTimer(STEP_MS, look);
    };
    scheduler.addTimer(0, look);
    await scheduler.run();
    assert.ok(holds(), `${what} did not happen`);
  }

  /** The guest makes a request; returns the status of its response. */
  async request(request: GuestRequest): Promise<number> {
    this.guest.add(request);
    this.guest.push();
    await this.until("a response", () => this.guest.waiting > 0);
    const [{ id, status }] = this.guest.take();
    assert.equal(id, request.id);
    return status;
  }

  async close(): Promise<void> {
    for (const type of [MessageType.CLOSE, MessageType.DETACH]) {
      await this.until("an end", this.#order(encodePlain(type, this.minor)));
    }
    this.guest.close();
    this.#server.shutDown(() => {});
    await this.#real.close();
  }
}
