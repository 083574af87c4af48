/**
 * A program that is started in place of a tapdisk to take over disks, and goes wrong at the step that its
 * first argument names.
 *
 * @module
 */
import { addressOf } from "../../ffi/libc.ts";
import { pathExists } from "../../ffi/paths.ts";
import { sendAt, unixConnect } from "../../ffi/sockets.ts";
import { HandoverChannel } from "../../src/control/handover/channel.ts";
import { HANDOVER_FORMAT } from "../../src/control/handover/frames.ts";
import { linkNames, renamedFor } from "../../src/control/handover/names.ts";
import { ownerOfSocket } from "../../src/control/client/stale_sockets.ts";
import { controlFolder, controlSocketPath } from "../../src/control/paths.ts";
import { encodeTakeOver } from "../../src/control/protocol/upgrade.ts";

/** The steps at which it goes wrong. */
export const STEPS = [
  "exits",
  "speaks another format",
  "dies when it has asked",
  "cannot open the images",
  "dies before it is told",
  "dies when it is told",
  "refuses when it is told",
  "sends nonsense when it is told",
  "dies when it has opened",
  "dies when it is to serve",
  "sends descriptors when it is told",
] as const;

/** One of `STEPS`. */
export type Step = (typeof STEPS)[number] | "waits" | "serves too late" | "waits for a signal";

const LONG_MS = 60_000;

function die(): never {
  Deno.kill(Deno.pid, "SIGKILL");
  for (;;);
}

/** Receives frames up to one of a kind. */
function upTo(channel: HandoverChannel, kind: string): void {
  for (;;) {
    const { value } = channel.receive(performance.now() + LONG_MS);
    if (typeof value === "object" && value !== null && "kind" in value && value.kind === kind) {
      return;
    }
  }
}

function play(step: Step, pid: number): void {
  if (step === "exits") {
    console.error("tapdisk: no luck today");
    Deno.exit(3);
  }
  const fd = unixConnect(controlSocketPath(pid));
  const format = step === "speaks another format" ? HANDOVER_FORMAT + 1 : HANDOVER_FORMAT;
  const wish = encodeTakeOver(format);
  sendAt(fd, addressOf(wish), wish.length);
  if (step === "dies when it has asked") die();
  const channel = new HandoverChannel(fd);
  const tell = (kind: string, more: object = {}): void =>
    channel.send({ kind, ...more }, [], performance.now() + LONG_MS);
  upTo(channel, "rehearse");
  if (step === "cannot open the images") {
    tell("failed", { errno: 2, message: "Cannot open the image: it is not there" });
    upTo(channel, "nothing");
  }
  if (step === "waits") upTo(channel, "nothing");
  if (step === "serves too late") awaitTest(pid);
  tell("ready");
  if (step === "dies before it is told") die();
  upTo(channel, "open");
  if (step === "dies when it is told") die();
  if (step === "refuses when it is told") {
    tell("failed", { errno: 5, message: "Cannot open the image: a bad day" });
    upTo(channel, "nothing");
  }
  if (step === "sends nonsense when it is told") {
    tell("what");
    upTo(channel, "nothing");
  }
  if (step === "sends descriptors when it is told") {
    channel.send({ kind: "opened" }, [0, 0, 0], performance.now() + LONG_MS);
    upTo(channel, "nothing");
  }
  tell("opened");
  if (step === "dies when it has opened") die();
  upTo(channel, "serve");
  if (step === "serves too late") {
    takeNames(pid);
    // For the other process, its patience is over ahead of the answer.
    sendAtOnce(fd, ["what", "serving"]);
    upTo(channel, "nothing");
  }
  if (step === "waits for a signal") return serveUntilSignal(pid, () => tell("serving"));
  die();
}

/** Tells the test that the other process is asked and serves, and waits for the test. */
function awaitTest(pid: number): void {
  const note = `${controlFolder()}/asked-${pid}`;
  Deno.writeTextFileSync(note, "");
  const untilMs = performance.now() + LONG_MS;
  while (pathExists(note) && performance.now() < untilMs) {
    Atomics.wait(new Int32Array(new SharedArrayBuffer(4)), 0, 0, 10);
  }
}

/** The names of the other process become links to those of this one, as when this one serves. */
function takeNames(pid: number): void {
  for (const { name } of Deno.readDirSync(controlFolder())) {
    if (ownerOfSocket(name) !== pid) continue;
    const path = `${controlFolder()}/${name}`;
    Deno.linkSync(path, renamedFor(path, pid, Deno.pid));
  }
  linkNames(pid, Deno.pid);
}

/** Sends frames by one call: all have arrived when the first one has. */
function sendAtOnce(fd: number, kinds: readonly string[]): void {
  const bytes = kinds.flatMap((kind) => {
    const text = new TextEncoder().encode(JSON.stringify({ kind }));
    return [text.length, 0, 0, 0, 0, 0, 0, 0, ...text];
  });
  const frames = Uint8Array.from(bytes);
  sendAt(fd, addressOf(frames), frames.length);
}

/** The other process gets a signal while it hands over; this one notes that it is told of it. */
function serveUntilSignal(pid: number, serve: () => void): void {
  const note = `${controlFolder()}/signal-${pid}`;
  Deno.addSignalListener("SIGTERM", () => {
    Deno.writeTextFileSync(note, "SIGTERM");
    Deno.exit(0);
  });
  Deno.kill(pid, "SIGTERM");
  serve();
  setTimeout(() => Deno.exit(1), LONG_MS);
}

if (import.meta.main) {
  const [step, ...others] = Deno.args;
  play(step as Step, Number(others.at(-1)));
}
