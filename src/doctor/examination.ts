/**
 * Opening images to see whether their chains are whole. An image on a server that hangs would stop the
 * process that opens it, for ever. So another process opens them, one after another, and is ended when it takes
 * too long.
 *
 * @module
 */
import { errnoName, messageOf, SystemError } from "../../ffi/errno.ts";
import { fileInName } from "../driver/layers.ts";
import { osStorage } from "../files/storage.ts";
import { createEngine } from "../images/engine.ts";
import { OpenImage } from "../images/open_image.ts";
import { openChain } from "../vhd/image/chain.ts";

/** What became of an image. */
export interface Examined {
  /** `vhd:/disk.vhd` */
  readonly name: string;
  /** Why its chain cannot be opened; null when it can. */
  readonly fault: string | null;
  /** The error's name, such as ENOENT; null without one, or where the time was over. */
  readonly code: string | null;
}

/** Opens an image and those below it, and closes them. */
export async function examineImage(name: string): Promise<Examined> {
  try {
    await openAndClose(name);
    return { name, fault: null, code: null };
  } catch (error) {
    if (!(error instanceof SystemError)) throw error;
    return { name, fault: messageOf(error), code: errnoName(error.errno) };
  }
}

async function openAndClose(name: string): Promise<void> {
  const file = fileInName(name);
  // The chain of a VHD can be walked without the key of one that is encrypted.
  if (file?.driver.type === "vhd" && file.above === "") {
    openChain(file.path, { storage: osStorage, ignoreDisabled: true }).close();
    return;
  }
  const engine = createEngine(() => {});
  try {
    await (await OpenImage.open(engine, name, { readOnly: true })).close(engine);
  } finally {
    engine.close();
  }
}

/** How long one image may take, and all of them. */
export interface ExaminationLimits {
  readonly eachMs: number;
  readonly allMs: number;
}

/** A process that examines images whose names it reads from its standard input, a line of JSON each. */
export interface ExaminerCommand {
  readonly program: string;
  readonly args: readonly string[];
}

/** The lines of a process's output, as they come. */
async function* linesOf(stream: ReadableStream<Uint8Array>): AsyncGenerator<string> {
  const decoder = new TextDecoder();
  let pending = "";
  for await (const bytes of stream) {
    const lines = (pending + decoder.decode(bytes, { stream: true })).split("\n");
    pending = lines.pop() ?? "";
    yield* lines;
  }
}

function isExamined(value: unknown): value is Examined {
  return typeof value === "object" && value !== null && "name" in value && "fault" in value &&
    "code" in value;
}

/** How long a process that was killed is waited for. One that waits for a server may not end at once. */
const KILLED_MS = 1000;

/** Ends a process, and waits for its end, but not for long. */
async function abandon(
  child: Deno.ChildProcess,
  { lines, written }: { lines: AsyncGenerator<string>; written: Promise<void> },
): Promise<void> {
  try {
    child.kill("SIGKILL");
  } catch {
    // It has ended.
  }
  const late = Promise.withResolvers<void>();
  const timer = setTimeout(() => {
    child.unref();
    late.resolve();
  }, KILLED_MS);
  const ended = child.status.then(() => written).then(() => lines.return(undefined)).then(() => {});
  await Promise.race([ended, late.promise]);
  clearTimeout(timer);
}

/**
 * Examines images in another process. What takes too long is a fault of that image, and the others are
 * examined by a new process.
 *
 * @returns What became of the images; those that the time was not enough for are left out.
 */
export async function examineAll(
  names: readonly string[],
  { command, limits: { eachMs, allMs } }: { command: ExaminerCommand; limits: ExaminationLimits },
): Promise<Examined[]> {
  const examined: Examined[] = [];
  const untilMs = performance.now() + allMs;
  const take = (one: Examined): void => {
    examined.push(one);
  };
  while (examined.length < names.length) {
    const left = names.slice(examined.length);
    await examineUntilSilence(left, { command, eachMs, untilMs, take });
    if (examined.length === names.length || performance.now() >= untilMs) break;
    const fault = `It could not be opened within ${eachMs / 1000} s`;
    take({ name: names[examined.length], fault, code: null });
  }
  return examined;
}

/** Examines images by one process, until all are examined or it says nothing for some time. */
async function examineUntilSilence(
  names: readonly string[],
  { command, eachMs, untilMs, take }: {
    command: ExaminerCommand;
    eachMs: number;
    untilMs: number;
    take: (examined: Examined) => void;
  },
): Promise<void> {
  const child = new Deno.Command(command.program, {
    args: [...command.args],
    stdin: "piped",
    stdout: "piped",
    stderr: "null",
  }).spawn();
  const writer = child.stdin.getWriter();
  const text = names.map((name) => `${JSON.stringify(name)}\n`).join("");
  const written = writer.write(new TextEncoder().encode(text)).then(() => writer.close())
    .catch(() => {});
  const lines = linesOf(child.stdout);
  try {
    for (let count = 0; count < names.length; count++) {
      const line = await nextWithin(lines, Math.min(eachMs, untilMs - performance.now()));
      const value: unknown = line === null ? null : JSON.parse(line);
      if (!isExamined(value)) return;
      take(value);
    }
  } finally {
    await abandon(child, { lines, written });
  }
}

/** The next line; null at the end, or when none comes in time. */
async function nextWithin(
  lines: AsyncGenerator<string>,
  timeoutMs: number,
): Promise<string | null> {
  const late = Promise.withResolvers<null>();
  const timer = setTimeout(() => late.resolve(null), Math.max(0, timeoutMs));
  try {
    const next = lines.next().then(({ value, done }) => done ? null : value);
    return await Promise.race([next, late.promise]);
  } finally {
    clearTimeout(timer);
  }
}
