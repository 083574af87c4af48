/**
 * The control socket of a tapdisk, with commands of the test on a loop whose clock the test
 * advances: which commands run when, and what becomes of peers that keep nobody waiting but
 * themselves.
 *
 * @module
 */
import assert from "node:assert/strict";
import { Errno } from "../../ffi/errno.ts";
import { unixConnect } from "../../ffi/sockets.ts";
import type { Command } from "../../src/control/daemon/command.ts";
import { type Job, JobQueue } from "../../src/control/daemon/job_queue.ts";
import { ControlServer } from "../../src/control/daemon/server.ts";
import { encodePlain, MESSAGE_BYTES } from "../../src/control/protocol/message.ts";
import { PlayedLoop, SocketEnd } from "../support/played_loop.ts";
import { withTempDir } from "../support/tools.ts";

const QUESTION = 1000;
const CHANGE = 1001;
const ANSWER = 1002;
/** Connections that a server has at once. */
const MOST_CONNECTIONS = 32;

/** A server whose changes end when the test says so. */
class Rig {
  readonly loop = new PlayedLoop();
  readonly server: ControlServer;
  /** The changes that run: what ends each. */
  readonly running: (() => void)[] = [];
  readonly #path: string;
  readonly #ends: SocketEnd[] = [];

  constructor(folder: string) {
    this.#path = `${folder}/ctl`;
    const question: Command = {
      exclusive: false,
      run: (_request, answer) => answer(encodePlain(ANSWER, 0)),
    };
    const change: Command = {
      exclusive: true,
      run: (_request, answer) => {
        this.running.push(() => answer(encodePlain(ANSWER, 0)));
      },
    };
    this.server = new ControlServer(this.loop, this.#path, {
      commands: new Map([[QUESTION, question], [CHANGE, change]]),
      log: { info() {}, warn() {}, error() {} },
    });
  }

  connect(): SocketEnd {
    const end = new SocketEnd(unixConnect(this.#path));
    this.#ends.push(end);
    this.run();
    return end;
  }

  /** Sends a request on a new connection. */
  ask(type: number, minor = 0): SocketEnd {
    const end = this.connect();
    end.send(encodePlain(type, minor));
    this.run();
    return end;
  }

  run(): void {
    for (let i = 0; i < 10; i++) this.loop.poll();
  }

  close(): void {
    for (const end of this.running.splice(0)) end();
    this.run();
    this.server.shutDown(() => {});
    for (const end of this.#ends) end.close();
  }
}

function serverTest(name: string, body: (rig: Rig) => void): void {
  Deno.test(name, () =>
    withTempDir((folder) => {
      const rig = new Rig(folder);
      body(rig);
      rig.close();
      return Promise.resolve();
    }));
}

function isAnswered(end: SocketEnd): boolean {
  return end.receive()?.length === MESSAGE_BYTES;
}

serverTest("control: one change of a disk runs at a time, those of others beside it", (rig) => {
  const first = rig.ask(CHANGE, 1);
  const second = rig.ask(CHANGE, 1);
  const other = rig.ask(CHANGE, 2);
  assert.equal(rig.running.length, 2);
  assert.ok(isAnswered(rig.ask(QUESTION, 1)), "questions are answered meanwhile");
  rig.running[0]();
  rig.run();
  assert.ok(isAnswered(first) && !isAnswered(second) && !isAnswered(other));
  assert.equal(rig.running.length, 3);
  rig.running[2]();
  rig.run();
  assert.ok(isAnswered(second) && !isAnswered(other));
});

serverTest("control: a peer that sends half a request is hung up on after ten seconds", (rig) => {
  const slow = rig.connect();
  slow.send(new Uint8Array(10));
  rig.run();
  assert.equal(slow.receive()?.length, 0);
  assert.ok(rig.loop.turn());
  assert.equal(rig.loop.nowMs(), 10_000);
  rig.run();
  assert.equal(slow.receive(), null);
  assert.ok(isAnswered(rig.ask(QUESTION)));
});

serverTest("control: a peer that waits for its change is not hung up on", (rig) => {
  const patient = rig.ask(CHANGE);
  assert.equal(rig.loop.turn(), false, "nothing is due");
  rig.running[0]();
  rig.run();
  assert.ok(isAnswered(patient));
});

serverTest("control: connections beyond the limit wait until another ends", (rig) => {
  const ends = Array.from({ length: MOST_CONNECTIONS }, () => rig.connect());
  const waiting = rig.ask(QUESTION);
  assert.equal(waiting.receive()?.length, 0);
  ends[0].send(encodePlain(QUESTION, 0));
  rig.run();
  assert.ok(isAnswered(ends[0]));
  assert.ok(isAnswered(waiting));
});

serverTest("control: a request that is not known is an error, and the next is answered", (rig) => {
  const answer = rig.ask(77).receive();
  assert.equal(answer?.length, MESSAGE_BYTES);
  assert.equal(new DataView(answer.buffer).getInt32(8, true), Errno.EINVAL);
  assert.ok(isAnswered(rig.ask(QUESTION)));
});

/** A job that notes what happens to it, and ends when it is told to. */
class NotedJob implements Job {
  readonly minor = 1;
  end: () => void = () => {};
  readonly cancel: (() => void) | undefined;

  constructor(
    readonly name: string,
    readonly events: string[],
    { preempts = false, cancellable = false } = {},
  ) {
    this.preempts = preempts;
    this.cancel = cancellable ? (): void => void this.events.push(`${name} cancelled`) : undefined;
  }

  readonly preempts: boolean;

  run(finished: () => void): void {
    this.events.push(`${this.name} runs`);
    this.end = finished;
  }
}

Deno.test("jobs: one that preempts cancels those before it that can be cancelled, and those after", () => {
  const queue = new JobQueue();
  const events: string[] = [];
  const pause = new NotedJob("pause", events, { cancellable: true });
  const close = new NotedJob("close", events, { preempts: true });
  const late = new NotedJob("late pause", events, { cancellable: true });
  const open = new NotedJob("open", events);
  queue.add(pause);
  queue.add(close);
  queue.add(late);
  queue.add(open);
  assert.deepEqual(events, ["pause runs", "pause cancelled", "late pause cancelled"]);
  pause.end();
  assert.deepEqual(events.slice(3), ["close runs"]);
  pause.end();
  assert.deepEqual(events.slice(3), ["close runs"], "a job ends once");
  close.end();
  assert.deepEqual(events.slice(4), ["open runs"]);
});
