/**
 * Handshakes with an NBD server, and what the server must answer: a model of the specification that
 * knows nothing of the server's code.
 *
 * @module
 */
import type { Random } from "../../../../src/testing/random.ts";
import {
  infoContent,
  joined,
  lengthAndText,
  metaContent,
  Opt,
  packed,
  Rep,
} from "../../../support/nbd_client.ts";
import { anyBytes, hostileWord, mutated, pick } from "./choose.ts";

const OPTION_MAGIC = 0x49484156454f5054n;
/** Longer options are refused unread. */
const LONGEST_OPTION = 8192;
const LONGEST_TEXT = 4096;
/** The most options of a handshake. */
const MOST_OPTIONS = 256;

/** How the connection is after an option. */
export type After = "options" | "transmission" | "closed";

/** What the server must do with an option. */
export interface Verdict {
  /** The type of the last answer; 0 for an answer without a header; null for none. */
  readonly last: number | null;
  readonly after: After;
}

/** What was agreed on. */
export class Agreed {
  structured = false;
  meta = false;
  noZeroes = false;
  #options = 0;

  /** Judges an option, and notes what it changes. */
  judge(option: number, content: Uint8Array, length = content.length): Verdict {
    const refused = (last: number): Verdict => ({ last, after: "options" });
    if (this.#options++ >= MOST_OPTIONS) return { last: null, after: "closed" };
    if (length > LONGEST_OPTION) {
      if (option === Opt.ExportName) return { last: null, after: "closed" };
      return refused(Rep.ErrTooBig);
    }
    switch (option) {
      case Opt.ExportName:
        return { last: 0, after: "transmission" };
      case Opt.Abort:
        return { last: Rep.Ack, after: "closed" };
      case Opt.List:
        return refused(content.length === 0 ? Rep.Ack : Rep.ErrInvalid);
      case Opt.Info:
      case Opt.Go:
        if (!isInfo(content)) return refused(Rep.ErrInvalid);
        return { last: Rep.Ack, after: option === Opt.Go ? "transmission" : "options" };
      case Opt.StructuredReply:
        if (content.length > 0) return refused(Rep.ErrInvalid);
        this.structured = true;
        return refused(Rep.Ack);
      case Opt.ListMetaContext:
      case Opt.SetMetaContext:
        return this.#judgeMeta(option, content);
      default:
        return refused(Rep.ErrUnsup);
    }
  }

  #judgeMeta(option: number, content: Uint8Array): Verdict {
    const queries = this.structured ? queriesOf(content) : null;
    if (queries === null) return { last: Rep.ErrInvalid, after: "options" };
    if (option === Opt.SetMetaContext) this.meta = queries.includes("base:allocation");
    return { last: Rep.Ack, after: "options" };
  }
}

/** Where a text ends that begins at `at`; -1 when it is none. */
function textEnd(view: DataView, at: number): number {
  if (at + 4 > view.byteLength) return -1;
  const length = view.getUint32(at);
  return length > LONGEST_TEXT || at + 4 + length > view.byteLength ? -1 : at + 4 + length;
}

function viewOf(bytes: Uint8Array): DataView {
  return new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
}

function isInfo(content: Uint8Array): boolean {
  const view = viewOf(content);
  const end = textEnd(view, 0);
  if (end < 0 || end + 2 > content.length) return false;
  return end + 2 + 2 * view.getUint16(end) === content.length;
}

function queriesOf(content: Uint8Array): string[] | null {
  const view = viewOf(content);
  let at = textEnd(view, 0);
  if (at < 0 || at + 4 > content.length) return null;
  const count = view.getUint32(at);
  at += 4;
  const queries: string[] = [];
  for (let i = 0; i < count; i++) {
    const end = textEnd(view, at);
    if (end < 0) return null;
    // Latin-1: each byte is a character.
    queries.push(String.fromCharCode(...content.subarray(at + 4, Math.min(end, at + 104))));
    at = end;
  }
  return at === content.length ? queries : null;
}

function anyText(random: Random): string {
  const lengths = [0, 1, 8, 255, 4095, 4096, 4097, 8000];
  const length = random.chance(0.8) ? random.below(20) : pick(random, lengths);
  return pick(random, ["a", "é", "\0", "base:", "/../"]).repeat(length).slice(0, length);
}

function goodContent(random: Random, option: number): Uint8Array {
  switch (option) {
    case Opt.Info:
    case Opt.Go: {
      const wanted = Array.from({ length: random.below(6) }, () => random.below(6));
      return infoContent(anyText(random), wanted);
    }
    case Opt.ListMetaContext:
    case Opt.SetMetaContext: {
      const known = ["base:allocation", "base:", "", "qemu:dirty-bitmap:x", anyText(random)];
      const queries = Array.from({ length: random.below(5) }, () => pick(random, known));
      return metaContent(anyText(random), queries);
    }
    case Opt.ExportName:
      return new TextEncoder().encode(anyText(random));
    default:
      return new Uint8Array(0);
  }
}

function badContent(random: Random, option: number): Uint8Array {
  switch (random.below(5)) {
    case 0:
      return anyBytes(random, random.below(64));
    case 1:
      return joined(
        packed([4, hostileWord(random, [LONGEST_TEXT, LONGEST_OPTION])]),
        anyBytes(random, random.below(32)),
      );
    case 2: // A count that is not that of what follows.
      return joined(
        lengthAndText("x"),
        packed([2, hostileWord(random) & 0xffff]),
        anyBytes(random, random.below(40)),
      );
    case 3:
      return joined(
        lengthAndText("x"),
        packed([4, hostileWord(random)]),
        lengthAndText("base:allocation"),
      );
    default:
      return mutated(random, goodContent(random, option));
  }
}

/** An option, hostile or not. */
export interface HandshakeOption {
  readonly bytes: Uint8Array;
  readonly option: number;
  readonly verdict: Verdict;
  /** Whether its content is not all there: the server waits for the rest. */
  readonly isShort: boolean;
}

/** Makes the next option of a handshake. */
export function anyOption(random: Random, agreed: Agreed): HandshakeOption {
  const known = [2, 3, 5, 6, 6, 7, 8, 8, 9, 10, 10, 1];
  // Those that end the options are rare, or no handshake would have many.
  let option = random.chance(0.85) ? pick(random, known) : hostileWord(random);
  const ends = option === Opt.Go || option === Opt.Abort || option === Opt.ExportName;
  if (ends && random.chance(0.7)) option = Opt.Info;
  const content = random.chance(0.5) ? goodContent(random, option) : badContent(random, option);
  if (random.chance(0.04)) return wrongLength(random, option, content, agreed);
  const magic = random.chance(0.01)
    ? OPTION_MAGIC ^ (1n << BigInt(random.below(64)))
    : OPTION_MAGIC;
  const bytes = joined(packed([8, magic], [4, option], [4, content.length]), content);
  const verdict: Verdict = magic === OPTION_MAGIC
    ? agreed.judge(option, content)
    : { last: null, after: "closed" };
  return { bytes, option, verdict, isShort: false };
}

/** An option of a handshake without end: the server answers each, up to its limit. */
export function smallOption(random: Random, agreed: Agreed): HandshakeOption {
  const option = pick(random, [Opt.List, Opt.StartTls, Opt.StructuredReply, 99]);
  const bytes = packed([8, OPTION_MAGIC], [4, option], [4, 0]);
  return { bytes, option, verdict: agreed.judge(option, new Uint8Array(0)), isShort: false };
}

/** An option whose length is not that of its content; the rest never comes. */
function wrongLength(
  random: Random,
  option: number,
  content: Uint8Array,
  agreed: Agreed,
): HandshakeOption {
  const length = Math.max(content.length + 1, hostileWord(random, [LONGEST_OPTION]));
  const bytes = joined(packed([8, OPTION_MAGIC], [4, option], [4, length]), content);
  // One that is too long is answered before its content has come.
  const verdict: Verdict = length > LONGEST_OPTION
    ? agreed.judge(option, content, length)
    : { last: null, after: "options" };
  return { bytes, option, verdict, isShort: true };
}
