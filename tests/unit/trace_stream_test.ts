/**
 * The connection over which a trace is sent, on a loop whose clock the test advances.
 *
 * @module
 */
import assert from "node:assert/strict";
import { closeFile } from "../../ffi/files.ts";
import { socketPair } from "../../ffi/sockets.ts";
import { TraceStream } from "../../src/control/daemon/trace_stream.ts";
import { decodeTraceHead } from "../../src/control/protocol/trace.ts";
import { MESSAGE_BYTES } from "../../src/control/protocol/message.ts";
import { SimulatedDisk } from "../../src/testing/simulated_disk.ts";
import { FrameType, MOST_LAYERS, RECORD_BYTES } from "../../src/trace/records.ts";
import { RequestKind, type RequestOwner } from "../../src/vbd/slots.ts";
import { Vbd } from "../../src/vbd/vbd.ts";
import { createVbdContext } from "../../src/vbd/vbd_context.ts";
import { PlayedLoop, SocketEnd } from "../support/played_loop.ts";

/** More records than the ring and the buffers of the socket hold. */
const TOO_MANY = 200_000;

/** A disk that is traced over a socket. */
class Rig implements RequestOwner {
  readonly loop = new PlayedLoop();
  readonly disk = new SimulatedDisk({ seed: 1 });
  readonly vbd: Vbd;
  readonly reader: SocketEnd;
  readonly log: string[] = [];
  readonly stream: TraceStream;
  ended = 0;
  isOver = false;

  constructor() {
    const connection = this.disk.connect(this.loop, { latencyMs: 0 });
    const note = (message: string): void => void this.log.push(message);
    const context = createVbdContext({
      ...{ scheduler: this.loop, backend: connection, files: connection, log: note },
    });
    this.vbd = new Vbd(context, 3);
    this.vbd.open("ram:1");
    const [reader, fd] = socketPair();
    this.reader = new SocketEnd(reader);
    this.stream = new TraceStream({ fd, peer: 42 }, {
      vbd: this.vbd,
      scheduler: this.loop,
      log: { info: note, warn: note, error: note },
      ended: () => this.isOver = true,
    });
  }

  requestDone(slot: number): void {
    this.vbd.requests.releaseSlot(slot);
    this.ended++;
  }

  read(requests: number): void {
    for (let i = 0; i < requests; i++) {
      const slot = this.vbd.requests.takeSlot();
      this.vbd.requests.start(slot, RequestKind.Read, 8, 8, false, this);
    }
  }

  /** Lets the clock go on to the next timer. */
  turn(): void {
    this.loop.turn();
    this.loop.poll();
  }

  /** Takes all in that comes until the connection ends. */
  takeAll(): Uint8Array {
    const parts: Uint8Array[] = [];
    for (let left = 10_000; left > 0; left--) {
      const got = this.reader.receive();
      if (got === null) break;
      if (got.length > 0) parts.push(got);
      else this.turn();
    }
    const all = new Uint8Array(parts.reduce((sum, { length }) => sum + length, 0));
    let at = 0;
    for (const part of parts) {
      all.set(part, at);
      at += part.length;
    }
    return all;
  }

  close(): void {
    this.vbd.close(() => {});
    for (let i = 0; i < 10; i++) this.loop.poll();
    this.vbd.destroy();
    this.disk.close();
  }
}

/** The frames behind the head: the type of each, and its content. */
function framesOf(bytes: Uint8Array): { type: number; content: Uint8Array }[] {
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.length);
  const frames = [];
  for (let at = MESSAGE_BYTES; at < bytes.length;) {
    const [type, length] = [view.getUint32(at, true), view.getUint32(at + 4, true)];
    frames.push({ type, content: bytes.subarray(at + 8, at + 8 + length) });
    at += 8 + length;
  }
  return frames;
}

function json(bytes: Uint8Array): { why: string; lost: number } {
  return JSON.parse(new TextDecoder().decode(bytes));
}

Deno.test("a trace is sent whole, in frames, and ends when it is told to", () => {
  const rig = new Rig();
  rig.read(1000);
  rig.turn();
  rig.reader.send(new Uint8Array(1));
  rig.loop.poll();
  const bytes = rig.takeAll();
  assert.equal(decodeTraceHead(bytes).recordBytes, RECORD_BYTES);
  const frames = framesOf(bytes);
  assert.deepEqual([frames[0].type, json(frames[0].content)], [FrameType.Layers, [[1, "ram:1"]]]);
  const records = frames.filter(({ type }) => type === FrameType.Records);
  const count = records.reduce((sum, { content }) => sum + content.length / RECORD_BYTES, 0);
  // Of each request that it was at the image, and that it ended.
  assert.equal(count, 2000);
  const { why, lost } = json(frames.at(-1)?.content ?? new Uint8Array());
  assert.deepEqual([frames.at(-1)?.type, why, lost], [FrameType.End, "it was told to end", 0]);
  assert.ok(rig.isOver && rig.vbd.tracing.ring === null);
  rig.reader.close();
  rig.close();
});

Deno.test("a trace that ends before anything was sent names its images all the same", () => {
  for (const how of ["told", "closed"]) {
    const rig = new Rig();
    rig.read(1);
    if (how === "closed") rig.vbd.close(() => {});
    else rig.reader.send(new Uint8Array(1));
    rig.loop.poll();
    const [first, ...others] = framesOf(rig.takeAll());
    assert.deepEqual([first.type, json(first.content)], [FrameType.Layers, [[1, "ram:1"]]], how);
    assert.equal(others.at(-1)?.type, FrameType.End);
    rig.close();
  }
});

Deno.test("what a reader does not take in time is lost and counted, and costs no memory", () => {
  const rig = new Rig();
  rig.read(TOO_MANY);
  rig.turn();
  rig.vbd.close(() => {});
  rig.loop.poll();
  const frames = framesOf(rig.takeAll());
  const records = frames.filter(({ type }) => type === FrameType.Records);
  const count = records.reduce((sum, { content }) => sum + content.length / RECORD_BYTES, 0);
  const { why, lost } = json(frames.at(-1)?.content ?? new Uint8Array());
  assert.equal(why, "the disk was closed");
  assert.ok(lost > 0);
  assert.equal(count + lost, 2 * TOO_MANY);
  assert.equal(rig.ended, TOO_MANY);
  rig.reader.close();
  rig.close();
});

Deno.test("a reader that takes nothing for half a minute is hung up on", () => {
  const rig = new Rig();
  rig.read(TOO_MANY);
  rig.turn();
  const startMs = rig.loop.nowMs();
  while (!rig.isOver) rig.turn();
  assert.ok(rig.loop.nowMs() - startMs >= 29_000);
  assert.match(rig.log.at(-1) ?? "", /trace of minor 3 has ended: its reader has taken nothing/);
  assert.equal(rig.vbd.tracing.ring, null);
  rig.read(10);
  rig.reader.close();
  rig.close();
});

Deno.test("a trace that cannot begin leaves nothing behind", () => {
  const rig = new Rig();
  rig.reader.close();
  rig.loop.poll();
  const { tracing } = rig.vbd;
  const names = tracing.begin.bind(tracing);
  tracing.begin = (ring, finder): void => {
    names(ring, finder);
    throw new Error("no memory");
  };
  const [reader, fd] = socketPair();
  const note = (): void => {};
  const begin = (): TraceStream =>
    new TraceStream({ fd, peer: 42 }, {
      vbd: rig.vbd,
      scheduler: rig.loop,
      log: { info: note, warn: note, error: note },
      ended: note,
    });
  assert.throws(begin, /no memory/);
  assert.equal(tracing.ring, null);
  // The descriptor is not watched, so that it can be watched again.
  tracing.begin = names;
  const stream = begin();
  rig.read(10);
  rig.turn();
  closeFile(reader);
  rig.loop.poll();
  assert.ok(stream.failed);
  rig.close();
});

Deno.test("images that are opened without end get no names without end", () => {
  const { tracing } = new Rig().vbd;
  tracing.takeNames();
  const images = Array.from({ length: 100 }, (_, index) => ({
    spec: { type: "aio", path: `/${index}` },
  }));
  for (let i = 0; i <= MOST_LAYERS / images.length; i++) tracing.opened(images);
  tracing.opened(images);
  const names = tracing.takeNames();
  assert.equal(names.length, MOST_LAYERS - 1);
  assert.equal(names.at(-1)?.[0], MOST_LAYERS);
});

Deno.test("a trace ends when its reader hangs up", () => {
  const rig = new Rig();
  rig.turn();
  rig.reader.close();
  rig.loop.poll();
  assert.ok(rig.isOver && rig.vbd.tracing.ring === null);
  rig.read(10);
  rig.close();
});
