/**
 * One question to many tapdisks at once. The questions are sent to all before the first answer is
 * awaited, with one time limit for all, so that a tapdisk that hangs does not delay the others.
 *
 * @module
 */
import { Errno, SystemError } from "../../../ffi/errno.ts";
import { closeFile } from "../../../ffi/files.ts";
import { addressOf } from "../../../ffi/libc.ts";
import { POLLIN, waitForDescriptors } from "../../../ffi/poll.ts";
import { receiveSeldom, sendSeldom, unixConnectAtOnce } from "../../../ffi/sockets.ts";
import { controlSocketPath } from "../paths.ts";
import { MESSAGE_BYTES } from "../protocol/message.ts";
import { checkAnswer, noAnswer, traceMessage } from "./connection.ts";

/** After how long to connect again to a tapdisk whose backlog of connections is full. */
const CONNECT_AGAIN_MS = 20;

/** How many messages are received at once: a tapdisk has an answer for each of its disks. */
const MESSAGES_AT_ONCE = 8;

/** A question to one tapdisk. */
export interface Question<Answer> {
  readonly pid: number;
  readonly request: Uint8Array<ArrayBuffer>;
  /** The type of the messages that answer it. */
  readonly response: number;
  /** What was asked for, as the start of an error's message: `Cannot …`. */
  readonly what: string;
  /** Takes a message; returns the answer when it was the last one, else null. May throw. */
  readonly take: (message: Uint8Array<ArrayBuffer>) => Answer | null;
}

/** The answer to a question, or an error: ETIMEDOUT when the tapdisk did not answer. */
export type Outcome<Answer> = { readonly answer: Answer } | { readonly error: Error };

/** A question whose answer is a message with a text behind it. */
export interface TextQuestion<Answer> extends Omit<Question<Answer>, "take"> {
  /** The length of the text, bytes. May throw. */
  readonly length: (message: Uint8Array<ArrayBuffer>) => number;
  /** Takes the text. May throw. */
  readonly takeText: (text: Uint8Array<ArrayBuffer>) => Answer;
}

type AnyQuestion<Answer> = Question<Answer> | TextQuestion<Answer>;

/** A question without an answer yet. */
class Pending<Answer> {
  readonly question: AnyQuestion<Answer>;
  outcome: Outcome<Answer> | null = null;
  /** -1 while there is no connection. */
  fd = -1;
  /** What is received: messages, or a message and then the text behind it. */
  #input: Uint8Array<ArrayBuffer>;
  #received = 0;
  #isText = false;

  constructor(question: AnyQuestion<Answer>) {
    this.question = question;
    const messages = "take" in question ? MESSAGES_AT_ONCE : 1;
    this.#input = new Uint8Array(messages * MESSAGE_BYTES);
  }

  /** Connects and sends the request, unless the backlog of the tapdisk is full. */
  begin(): void {
    const { pid, request } = this.question;
    try {
      this.fd = unixConnectAtOnce(controlSocketPath(pid));
      traceMessage("sending", request);
      // The buffer of a new socket is much larger than one request.
      const sent = sendSeldom(this.fd, addressOf(request), request.length);
      if (sent < 0) throw new SystemError(-sent, `Cannot send to tapdisk ${pid}`);
    } catch (error) {
      if (error instanceof SystemError && error.errno === Errno.EAGAIN && this.fd < 0) return;
      this.end({ error: asError(error) });
    }
  }

  /** Receives what has arrived. */
  ready(): void {
    try {
      const answer = this.#receive();
      if (answer !== null) this.end({ answer });
    } catch (error) {
      this.end({ error: asError(error) });
    }
  }

  #receive(): Answer | null {
    const { what } = this.question;
    const input = this.#input;
    const into = addressOf(input) + this.#received;
    const got = receiveSeldom(this.fd, into, input.length - this.#received);
    if (got === -Errno.EAGAIN || got === -Errno.EINTR) return null;
    if (got <= 0) {
      throw new SystemError(got === 0 ? Errno.EPROTO : -got, `${what} (it closed the connection)`);
    }
    this.#received += got;
    if ("take" in this.question) return this.#takeMessages(this.question);
    if (this.#received < input.length) return null;
    this.#received = 0;
    if (this.#isText) return this.#takeText();
    this.#check(input);
    const lengthBytes = this.question.length(input);
    this.#input = new Uint8Array(lengthBytes);
    this.#isText = true;
    return lengthBytes === 0 ? this.#takeText() : null;
  }

  /** Takes what has arrived in whole; returns the answer when its last message is there. */
  #takeMessages({ take }: Question<Answer>): Answer | null {
    const input = this.#input;
    let taken = 0;
    for (; taken + MESSAGE_BYTES <= this.#received; taken += MESSAGE_BYTES) {
      const message = input.subarray(taken, taken + MESSAGE_BYTES);
      this.#check(message);
      const answer = take(message);
      if (answer !== null) return answer;
    }
    input.copyWithin(0, taken, this.#received);
    this.#received -= taken;
    return null;
  }

  #check(message: Uint8Array): void {
    const { pid, response: type, what } = this.question;
    traceMessage("received", message);
    checkAnswer(message, { pid, type, what });
  }

  #takeText(): Answer | null {
    return "takeText" in this.question ? this.question.takeText(this.#input) : null;
  }

  end(outcome: Outcome<Answer>): void {
    this.outcome = outcome;
    if (this.fd >= 0) closeFile(this.fd);
    this.fd = -1;
  }
}

function asError(error: unknown): Error {
  return error instanceof Error ? error : new Error(String(error));
}

/**
 * Asks all questions at once and returns their outcomes in the same order, after `timeoutMs` at the
 * latest. An error of a single tapdisk is an outcome, and is not thrown.
 */
export function askAll<Answer>(
  questions: readonly AnyQuestion<Answer>[],
  timeoutMs: number,
): Outcome<Answer>[] {
  const all = questions.map((question) => new Pending(question));
  const untilMs = performance.now() + timeoutMs;
  for (;;) {
    for (const pending of all) if (pending.outcome === null && pending.fd < 0) pending.begin();
    const open = all.filter(({ outcome }) => outcome === null);
    const leftMs = untilMs - performance.now();
    if (open.length === 0 || leftMs <= 0) break;
    const connected = open.filter(({ fd }) => fd >= 0);
    const waitMs = connected.length < open.length ? Math.min(leftMs, CONNECT_AGAIN_MS) : leftMs;
    const ready = waitForDescriptors(connected.map(({ fd }) => fd), POLLIN, waitMs);
    for (const pending of connected) if (ready.includes(pending.fd)) pending.ready();
  }
  return all.map((pending) => {
    if (pending.outcome === null) pending.end({ error: noAnswer(pending.question.pid) });
    return pending.outcome ?? { error: noAnswer(pending.question.pid) };
  });
}

/** How long a question may take, and how many are asked at once. */
export interface PatientLimits {
  readonly timeoutMs: number;
  readonly atOnce: number;
}

/** The pauses between two looks at the answers: each is longer than the one before, up to a limit. */
const SHORTEST_PAUSE_MS = 1;
const LONGEST_PAUSE_MS = 20;

/**
 * As `askAll`, without keeping the thread: other work of this process goes on while answers are awaited.
 * Each question has the time limit for itself; at most `atOnce` are asked at a time.
 */
export async function askPatiently<Answer>(
  questions: readonly AnyQuestion<Answer>[],
  { timeoutMs, atOnce }: PatientLimits,
): Promise<Outcome<Answer>[]> {
  const all = questions.map((question) => ({ pending: new Pending(question), untilMs: 0 }));
  let next = 0;
  let open: typeof all = [];
  let pauseMs = SHORTEST_PAUSE_MS;
  for (;;) {
    const nowMs = performance.now();
    for (; open.length < atOnce && next < all.length; next++) {
      all[next].untilMs = nowMs + timeoutMs;
      open.push(all[next]);
    }
    if (open.length === 0) break;
    const isAnyReady = look(open.map(({ pending }) => pending));
    for (const { pending, untilMs } of open) {
      if (pending.outcome === null && nowMs >= untilMs) {
        pending.end({ error: noAnswer(pending.question.pid) });
      }
    }
    open = open.filter(({ pending }) => pending.outcome === null);
    pauseMs = isAnyReady ? SHORTEST_PAUSE_MS : Math.min(2 * pauseMs, LONGEST_PAUSE_MS);
    if (open.length > 0) await new Promise((resolve) => setTimeout(resolve, pauseMs));
  }
  return all.map(({ pending: { outcome, question } }) =>
    outcome ?? { error: noAnswer(question.pid) }
  );
}

/** Connects what is not connected, and receives what has arrived, without waiting; false for nothing. */
function look<Answer>(open: readonly Pending<Answer>[]): boolean {
  for (const pending of open) if (pending.fd < 0) pending.begin();
  const connected = open.filter(({ fd, outcome }) => fd >= 0 && outcome === null);
  const ready = new Set(waitForDescriptors(connected.map(({ fd }) => fd), POLLIN, 0));
  for (const pending of connected) if (ready.has(pending.fd)) pending.ready();
  return ready.size > 0;
}
