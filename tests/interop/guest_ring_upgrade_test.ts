/**
 * A new tapdisk takes over the disk of a running one, with the ring of a guest that goes on. Xen is played:
 * the guest is in the process of the test; see `ring_tapdisk.ts`.
 *
 * @module
 */
import assert from "node:assert/strict";
import { pathExists } from "../../ffi/paths.ts";
import { connectRing } from "../../src/control/client/guest_rings.ts";
import { withConnection } from "../../src/control/client/connection.ts";
import { allocateMinor } from "../../src/control/minors/minors.ts";
import { readMinorRecord } from "../../src/control/minors/minor_record.ts";
import { decodeResponse } from "../../src/control/protocol/answers.ts";
import {
  encodePlain,
  MESSAGE_BYTES,
  MessageType,
  messageType,
} from "../../src/control/protocol/message.ts";
import { encodeOpen, OPEN_DEFAULTS } from "../../src/control/protocol/open_request.ts";
import {
  decodeUpgradeReply,
  encodeUpgrade,
  type ProgramCall,
} from "../../src/control/protocol/upgrade.ts";
import { createDynamic } from "../../src/vhd/create.ts";
import { waitUntil } from "../support/served.ts";
import { STEPS } from "../support/successor.ts";
import { withTempDir } from "../support/tools.ts";
import { PlayedGuest } from "../support/xen/played_guest.ts";
import { type Events, PlayedXen } from "../support/xen/played_xen.ts";
import { LOAD_PAGES, LOAD_SECTORS, RingLoad } from "../support/xen/ring_load.ts";

const SUPPORT = new URL("../support/", import.meta.url).pathname;
const RUN = ["run", "--quiet", "--allow-all"];
const STEP_MS = 1;
const LIMIT_MS = 60_000;
const DEVICE = 51712;
/** Files in shared memory have its number; other tests may run. It is below 0x7ff0. */
const DOMAIN = 20_000 + Deno.pid % 10_000;

/** The guest's end of the event channel. */
class Channel {
  readonly #listener: Deno.UnixListener;
  #connection: Deno.UnixConn | null = null;
  #ends: Promise<unknown>[] = [];

  constructor(folder: string) {
    this.#listener = Deno.listen({ transport: "unix", path: `${folder}/channel` });
    this.#ends.push(this.#accept());
  }

  async #accept(): Promise<void> {
    for await (const connection of this.#listener) {
      this.#connection = connection;
      // What was notified before is not lost.
      this.#signal();
      this.#ends.push(connection.readable.pipeTo(new WritableStream()).catch(() => {}));
    }
  }

  #signal(): void {
    this.#connection?.write(new Uint8Array(1)).catch(() => {});
  }

  get events(): Events {
    return {
      openEvent: () => 0,
      signal: () => this.#signal(),
      taken() {},
      closeEvent() {},
    };
  }

  async close(): Promise<void> {
    this.#listener.close();
    await Promise.all(this.#ends);
  }
}

/** A guest with a load, and the tapdisk that serves it. */
class Bench {
  readonly #channel: Channel;
  readonly #child: Deno.ChildProcess;
  readonly #folder: string;
  readonly #guest: PlayedGuest;
  readonly load: RingLoad;
  pid: number;
  minor = 0;
  #hasEnded = false;

  constructor(folder: string, pollDurationUs: number) {
    this.#folder = folder;
    this.#channel = new Channel(folder);
    const xen = new PlayedXen(this.#channel.events);
    const options = { domain: DOMAIN, device: DEVICE, pages: LOAD_PAGES, pollDurationUs };
    this.#guest = new PlayedGuest(xen, { ...options, path: `${folder}/memory` });
    // The guest's own end, by which it notifies.
    xen.bind(DOMAIN, this.#guest.ring.port);
    this.load = new RingLoad(this.#guest, 1, { verifies: true });
    const { program, args } = this.tapdisk("well");
    this.#child = new Deno.Command(program, { args: [...args], stdout: "piped" }).spawn();
    this.pid = this.#child.pid;
  }

  tapdisk(how: "well" | "unmapped"): ProgramCall {
    const script = `${SUPPORT}xen/ring_tapdisk.ts`;
    const guest = [this.#folder, String(DOMAIN), String(LOAD_PAGES)];
    return { program: Deno.execPath(), args: [...RUN, script, ...guest, how] };
  }

  async begin(): Promise<void> {
    const output = this.#child.stdout.getReader();
    assert.equal((await output.read()).done, false, "the tapdisk did not start");
    await output.cancel();
    const image = `${this.#folder}/disk.vhd`;
    createDynamic(image, { sizeBytes: LOAD_SECTORS * 512 });
    this.minor = allocateMinor();
    const open = { ...OPEN_DEFAULTS, image: `vhd:${image}`, device: "none" } as const;
    for (
      const [message, answer] of [
        [encodePlain(MessageType.ATTACH, this.minor), MessageType.ATTACH_RSP],
        [encodeOpen(this.minor, open), MessageType.OPEN_RSP],
      ] as const
    ) {
      withConnection(this.pid, LIMIT_MS, (connection) => {
        connection.send(message);
        connection.expect(answer, "Cannot begin");
      });
    }
    connectRing(this, this.#guest.ring);
  }

  /** Runs the load until something holds. */
  async until(what: string, holds: () => boolean): Promise<void> {
    const untilMs = performance.now() + LIMIT_MS;
    while (!holds()) {
      assert.ok(performance.now() < untilMs, `${what} did not happen\n${this.log}`);
      this.load.take();
      this.load.add(3);
      await new Promise((resolve) => setTimeout(resolve, STEP_MS));
    }
  }

  /** The load goes on: as many reads as there can be requests are verified, and more. */
  async goesOn(): Promise<void> {
    const before = this.load.verified;
    await this.until("a further load", () => this.load.verified > before + 300);
  }

  /** Under load, the tapdisk is asked to hand over; returns the error, or the new process. */
  async upgrade(call: ProgramCall): Promise<string | number> {
    let answer: Uint8Array | null = null;
    const asked = ask(this.pid, encodeUpgrade(call)).then((bytes) => answer = bytes);
    await this.until("an answer", () => answer !== null);
    const bytes = await asked;
    if (messageType(bytes) === MessageType.ERROR) return decodeResponse(bytes).message;
    assert.equal(messageType(bytes), MessageType.UPGRADE_RSP);
    return decodeUpgradeReply(bytes).pid;
  }

  /** All requests get their answers; then the disk is closed. */
  async end(): Promise<void> {
    const { load } = this;
    const untilMs = performance.now() + LIMIT_MS;
    while (load.answered.size < load.sent) {
      load.take();
      assert.ok(performance.now() < untilMs, `answers are missing\n${this.log}`);
      await new Promise((resolve) => setTimeout(resolve, STEP_MS));
    }
    for (const type of [MessageType.CLOSE, MessageType.DETACH]) {
      await ask(this.pid, encodePlain(type, this.minor));
    }
    await this.#child.status;
    await waitUntil(() => !pathExists(`/proc/${this.pid}`), "the end of the tapdisk");
    this.#hasEnded = true;
    this.#guest.close();
    await this.#channel.close();
    assert.ok(!pathExists(`/dev/shm/vbd3-${DOMAIN}-${DEVICE}`));
  }

  /** Ends what a test that failed has left. */
  kill(): void {
    if (this.#hasEnded) return;
    try {
      Deno.kill(this.pid, "SIGKILL");
    } catch {
      // It has ended.
    }
  }

  get log(): string {
    return Deno.readTextFileSync(`${this.#folder}/log/tapdisk.log`);
  }
}

/** Sends a control message, and returns the answer. */
async function ask(pid: number, message: Uint8Array): Promise<Uint8Array> {
  const path = `${Deno.env.get("BLKTAP_CONTROL_DIR")}/ctl${pid}`;
  using connection = await Deno.connect({ transport: "unix", path });
  await connection.write(message);
  const answer = new Uint8Array(MESSAGE_BYTES);
  for (let got = 0; got < MESSAGE_BYTES;) {
    const more = await connection.read(answer.subarray(got));
    if (more === null) throw new Error("It hung up");
    got += more;
  }
  return answer;
}

/** The files of a guest's counters that a tapdisk has. */
function counters(pid: number): boolean[] {
  const [own, notice] = [
    `td3-${pid}/vbd-${DOMAIN}-${DEVICE}`,
    `vbd3-${DOMAIN}-${DEVICE}/statistics`,
  ];
  return [own, notice].map((path) => pathExists(`/dev/shm/${path}`));
}

function ringTest(name: string, body: (bench: Bench) => Promise<void>, pollDurationUs = 0): void {
  Deno.test(`upgrade of a guest's ring: ${name}`, () =>
    withTempDir(async (folder) => {
      const before = Deno.env.get("BLKTAP_CONTROL_DIR");
      Deno.env.set("BLKTAP_CONTROL_DIR", folder);
      try {
        const bench = new Bench(folder, pollDurationUs);
        try {
          await bench.begin();
          await bench.goesOn();
          await body(bench);
          await bench.end();
        } finally {
          bench.kill();
        }
      } finally {
        if (before === undefined) Deno.env.delete("BLKTAP_CONTROL_DIR");
        else Deno.env.set("BLKTAP_CONTROL_DIR", before);
      }
    }));
}

async function threeTimes(bench: Bench): Promise<void> {
  for (let i = 0; i < 3; i++) {
    const before = bench.pid;
    const now = await bench.upgrade(bench.tapdisk("well"));
    assert.equal(typeof now, "number", `${now}\n${bench.log}`);
    bench.pid = Number(now);
    await bench.until("the end of the old process", () => !pathExists(`/proc/${before}`));
    assert.deepEqual(counters(bench.pid), [true, true]);
    assert.deepEqual(counters(before), [false, true]);
    assert.equal(readMinorRecord(bench.minor)?.device, "none");
    await bench.goesOn();
  }
  const waits = [...bench.log.matchAll(/users waited (.*)$/gm)].map(([, text]) => text);
  assert.equal(waits.length, 3);
  console.log(`  users waited ${waits.join("; ")}`);
}

ringTest("the guest goes on, three times", threeTimes);
ringTest("the guest goes on, three times, with polling", threeTimes, 1_000);

ringTest("a new process that fails at any step leaves the guest to the old one", async (bench) => {
  const { pid } = bench;
  for (const step of STEPS) {
    const args = [...RUN, `${SUPPORT}successor.ts`, step];
    const error = await bench.upgrade({ program: Deno.execPath(), args });
    assert.match(String(error), /Cannot|no luck|its end/, step);
    assert.deepEqual(counters(pid), [true, true]);
    await bench.goesOn();
  }
  assert.match(String(await bench.upgrade(bench.tapdisk("unmapped"))), /Cannot map pages/);
  await bench.goesOn();
  const now = await bench.upgrade(bench.tapdisk("well"));
  assert.equal(typeof now, "number", `${now}\n${bench.log}`);
  bench.pid = Number(now);
  await bench.goesOn();
});
