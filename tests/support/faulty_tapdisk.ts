/**
 * A tapdisk that throws at a chosen place. The file `BLKTAP_FAULT_FILE` contains the name of the
 * fault. The fault affects only the disk whose image has `victim` in its name, and the clients of
 * that disk.
 *
 * @module
 */
import { Link } from "../../src/driver/nbd/link.ts";
import { VhdDisk } from "../../src/driver/vhd/vhd_disk.ts";
import { VhdWriter } from "../../src/driver/vhd/vhd_writer.ts";
import { Device } from "../../src/control/daemon/device.ts";
import { NbdConnection } from "../../src/frontend/nbd/connection.ts";
import { DiskQueue } from "../../src/queue/disk_queue.ts";
import { EpollScheduler } from "../../src/scheduler/epoll_scheduler.ts";
import type { FaultOwner } from "../../src/scheduler/faults.ts";
import { Requests } from "../../src/vbd/requests.ts";
import { Vbd } from "../../src/vbd/vbd.ts";
import { tapdiskMain } from "../../src/cli/tapdisk/main.ts";

/** The places of a fault. */
export const FAULTS = [
  "driver call",
  "disk completion",
  "end of turn of a driver",
  "end of turn of a frontend",
  "timer of a disk",
  "promise of a disk",
  "closing of an image",
  "client's handler",
  "client's answer",
  "client's end of turn",
  "server's socket",
  "control connection",
  "control command",
  "promise of nobody",
  "timer of nobody",
  "timer of the runtime",
] as const;
/**
 * One of `FAULTS`; `shared` is a fault in a part that all disks share, `remote` one in an nbd:
 * image.
 */
export type Fault = (typeof FAULTS)[number] | "shared" | "remote";

const path = Deno.env.get("BLKTAP_FAULT_FILE") ?? "";

function isArmed(fault: Fault): boolean {
  try {
    return Deno.readTextFileSync(path) === fault;
  } catch {
    return false;
  }
}

function injected(fault: Fault): Error {
  Deno.writeTextFileSync(path, "");
  return new TypeError(`injected: ${fault}`);
}

function isVictim(owner: unknown): boolean {
  return owner instanceof Vbd && owner.name.includes("victim");
}

/** Inserts a check in front of a method. */
function before(
  prototype: object,
  method: string,
  fault: Fault,
  hits: (self: object) => boolean = () => true,
): void {
  const original: unknown = Reflect.get(prototype, method);
  if (typeof original !== "function") throw new TypeError(`There is no method ${method}`);
  Reflect.set(prototype, method, function (this: object, ...args: unknown[]): unknown {
    if (isArmed(fault) && hits(this)) throw injected(fault);
    return Reflect.apply(original, this, args);
  });
}

function ofVictim(self: object): boolean {
  return "faults" in self && isVictim(self.faults);
}

function isVhdVictim(self: object): boolean {
  return self instanceof VhdDisk && self.spec.path.includes("victim");
}

function patch(): void {
  before(VhdDisk.prototype, "read", "driver call", isVhdVictim);
  before(VhdDisk.prototype, "close", "closing of an image", isVhdVictim);
  before(Requests.prototype, "pieceDone", "disk completion", ofVictim);
  before(VhdWriter.prototype, "runDeferred", "end of turn of a driver", ofVictim);
  // One disk has a connection to a server.
  before(Link.prototype, "ready", "remote");
  before(NbdConnection.prototype, "ready", "client's handler");
  before(NbdConnection.prototype, "requestDone", "client's answer");
  before(NbdConnection.prototype, "runDeferred", "client's end of turn");
  before(Device.prototype, "statistics", "control command");
  before(DiskQueue.prototype, "endOfTurn", "shared");
  const { watch, addTurnWork } = EpollScheduler.prototype;
  EpollScheduler.prototype.watch = function (fd, events, handler, owner): void {
    const name = owner?.constructor.name ?? "";
    const faulty = {
      ready(ready: number): void {
        if (name === "NbdListener" && isArmed("server's socket")) throw injected("server's socket");
        if (name === "ControlConnection" && isArmed("control connection")) {
          throw injected("control connection");
        }
        handler.ready(ready);
      },
    };
    const isHit = name === "NbdListener" || name === "ControlConnection";
    watch.call(this, fd, events, isHit ? faulty : handler, owner);
  };
  EpollScheduler.prototype.addTurnWork = function (work, owner): void {
    const endOfTurn = (): boolean => {
      if (owner !== undefined) throwLater(this, owner);
      if (isVictim(owner) && isArmed("end of turn of a frontend")) {
        throw injected("end of turn of a frontend");
      }
      return work.endOfTurn();
    };
    addTurnWork.call(this, owner === undefined ? work : { endOfTurn }, owner);
  };
}

/** Throws at the end of a turn, for faults that no call of the victim starts. */
function throwLater(scheduler: EpollScheduler, owner: FaultOwner): void {
  if (!isVictim(owner)) return;
  const fail = (fault: Fault) => (): void => {
    throw new TypeError(`injected: ${fault}`);
  };
  const once = (fault: Fault, start: () => void): void => {
    if (!isArmed(fault)) return;
    Deno.writeTextFileSync(path, "");
    start();
  };
  once("timer of a disk", () => void scheduler.addTimer(0, fail("timer of a disk"), owner));
  once("timer of nobody", () => void scheduler.addTimer(0, fail("timer of nobody")));
  once("timer of the runtime", () => void setTimeout(fail("timer of the runtime"), 0));
  once("promise of nobody", () => void Promise.resolve().then(fail("promise of nobody")));
  once("promise of a disk", () => {
    scheduler.settle(Promise.resolve().then(fail("promise of a disk")), () => {}, owner);
  });
}

if (import.meta.main) {
  patch();
  Deno.exit(await tapdiskMain(["-D"]));
}
