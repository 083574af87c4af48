/**
 * Replies to NBD requests: correct ones in all forms that the protocol allows, and others.
 *
 * @module
 */
import type { Random } from "../../../../src/testing/random.ts";
import { joined, packed } from "../../../support/nbd_client.ts";
import { anyBytes, hostileLong, hostileWord, mutated, pick, word } from "./choose.ts";
import type { Offer } from "./lying_handshake.ts";

/** A request as it came. */
export interface NbdRequest {
  readonly command: number;
  readonly cookie: bigint;
  readonly offset: number;
  readonly length: number;
  readonly data: Uint8Array;
}

/** What a server sends for a request. */
export interface Answers {
  readonly messages: readonly Uint8Array[];
  readonly after: "goes on" | "deaf" | "end";
}

interface Situation {
  readonly offer: Offer;
  readonly content: Uint8Array;
}

const READ = 0;
const STATUS = 7;
const Type = { None: 0, Data: 1, Hole: 2, Status: 5, Error: 0x8001, OffsetError: 0x8002 } as const;

function simple(cookie: bigint, error: number, data: Uint8Array = new Uint8Array(0)): Uint8Array {
  return joined(packed([4, 0x67446698], [4, error], [8, cookie]), data);
}

function chunk(cookie: bigint, type: number, content: Uint8Array, isLast = false): Uint8Array {
  const flags = isLast ? 1 : 0;
  return joined(
    packed([4, 0x668e33ef], [2, flags], [2, type], [8, cookie], [4, content.length]),
    content,
  );
}

function last(cookie: bigint): Uint8Array {
  return chunk(cookie, Type.None, new Uint8Array(0), true);
}

/** Where a read is cut into chunks. */
function cuts(random: Random, offset: number, length: number): [number, number][] {
  const ends = new Set([offset + length]);
  for (let left = random.below(6); left > 0; left--) ends.add(offset + 1 + random.below(length));
  let start = offset;
  return [...ends].sort((a, b) => a - b).map((end) => {
    const part: [number, number] = [start, end];
    start = end;
    return part;
  });
}

function shuffled<T>(random: Random, list: readonly T[]): T[] {
  const rest = [...list];
  return list.map(() => rest.splice(random.below(rest.length), 1)[0]);
}

function readChunks(
  random: Random,
  { cookie, offset, length }: NbdRequest,
  content: Uint8Array,
): Uint8Array[] {
  const parts = cuts(random, offset, length).map(([start, end]) => {
    const bytes = content.subarray(start, end);
    if (bytes.every((byte) => byte === 0) && random.chance(0.7)) {
      return chunk(cookie, Type.Hole, packed([8, start], [4, end - start]));
    }
    return chunk(cookie, Type.Data, joined(packed([8, start]), bytes));
  });
  return random.chance(0.5) ? shuffled(random, parts) : parts;
}

function extents(random: Random, length: number): Uint8Array {
  const list: Uint8Array[] = [];
  for (let left = length; left > 0;) {
    const bytes = Math.min(left, 512 * (1 + random.below(200)));
    list.push(packed([4, bytes], [4, random.below(4)]));
    left -= bytes;
    if (random.chance(0.1)) break;
  }
  return joined(...list);
}

/** A correct answer. */
export function answersTo(
  random: Random,
  request: NbdRequest,
  { offer, content }: Situation,
): Answers {
  const { command, cookie, offset, length } = request;
  const goesOn = (...messages: Uint8Array[]): Answers => ({ messages, after: "goes on" });
  if (command === STATUS) {
    const body = joined(packed([4, offer.contextId ?? 1]), extents(random, length));
    return goesOn(chunk(cookie, Type.Status, body, true));
  }
  if (command !== READ) return goesOn(simple(cookie, 0));
  const data = content.subarray(offset, offset + length);
  if (!offer.structured) return goesOn(simple(cookie, 0, data));
  if (random.chance(0.5)) {
    return goesOn(chunk(cookie, Type.Data, joined(packed([8, offset]), data), true));
  }
  return goesOn(...readChunks(random, request, content), last(cookie));
}

const ERRNOS = [1, 5, 12, 22, 28, 75, 95, 108, 0, 11, 107, 4095, 4096, 0x7fff_ffff, 0xffff_ffff];

/** An answer that breaks the protocol, reports an error, or never comes. */
export function hostileAnswersTo(
  random: Random,
  request: NbdRequest,
  situation: Situation,
): Answers {
  const { command, cookie, offset, length } = request;
  const good = answersTo(random, request, situation).messages;
  const whole = joined(...good);
  const goesOn = (...messages: Uint8Array[]): Answers => ({ messages, after: "goes on" });
  switch (random.below(14)) {
    case 0:
      return goesOn(mutated(random, whole.subarray(0, 40)), whole.subarray(40));
    case 1:
      return { messages: [whole.subarray(0, random.below(whole.length))], after: "end" };
    case 2:
      return { messages: [whole.subarray(0, random.below(whole.length))], after: "deaf" };
    case 3:
      return goesOn(simple(pick(random, [cookie + 1n, 128n, hostileLong(random)]), 0));
    case 4:
      return goesOn(simple(cookie, pick(random, ERRNOS)), ...random.chance(0.3) ? good : []);
    case 5:
      return goesOn(
        chunk(
          cookie,
          pick(random, [Type.Error, Type.OffsetError, 0x8fff]),
          errorBody(random),
          true,
        ),
      );
    case 6:
      return goesOn(chunk(cookie, Type.Error, errorBody(random)), ...good);
    case 7:
      return goesOn(
        chunk(
          cookie,
          hostileWord(random) & 0xffff,
          anyBytes(random, random.below(40)),
          random.chance(0.5),
        ),
      );
    case 8: // All of it twice, or twice the first part and not the last.
      return goesOn(...good, ...good);
    case 9:
      return goesOn(...overlapping(random, request, situation.content));
    case 10: {
      const place = hostileLong(random, [
        offset,
        offset + length,
        Number(situation.offer.sizeBytes),
      ]);
      const size = random.chance(0.5) ? length : 1 + random.below(2000);
      const isHole = random.chance(0.5);
      const body = isHole
        ? packed([8, place], [4, hostileWord(random, [length])])
        : joined(packed([8, place]), new Uint8Array(size).fill(7));
      return goesOn(
        chunk(cookie, isHole ? Type.Hole : Type.Data, body, random.chance(0.5)),
        last(cookie),
      );
    }
    case 11:
      return goesOn(...good.slice(0, -1));
    case 12:
      return goesOn(lyingStatus(random, cookie, situation.offer));
    default: {
      if (command !== READ || !situation.offer.structured) return { messages: [], after: "end" };
      const parts = good.slice(0, -1);
      return goesOn(...parts.filter(() => random.chance(0.7)), last(cookie));
    }
  }
}

function errorBody(random: Random): Uint8Array {
  const length = pick(random, [0, 0, 5, 100, 4096, 60_000]);
  const text = new Uint8Array(length).fill(0x41);
  const announced = random.chance(0.7) ? length : hostileWord(random) & 0xffff;
  const body = joined(packed([4, pick(random, ERRNOS)], [2, announced]), text);
  return random.chance(0.1) ? body.subarray(0, random.below(6)) : body;
}

/** Chunks as long as the read together, of which some overlap, so that a part never comes. */
function overlapping(
  random: Random,
  { command, cookie, offset, length }: NbdRequest,
  content: Uint8Array,
): Uint8Array[] {
  if (command !== READ || length < 1024) return [last(cookie)];
  const half = 512 * Math.max(1, Math.floor(length / 1024));
  const data = (start: number, bytes: number): Uint8Array =>
    chunk(cookie, Type.Data, joined(packed([8, start]), content.subarray(start, start + bytes)));
  const shift = random.below(half);
  return [data(offset, half), data(offset + shift, length - half), last(cookie)];
}

function lyingStatus(random: Random, cookie: bigint, { contextId }: Offer): Uint8Array {
  const id = random.chance(0.7) ? contextId ?? 1 : word(random);
  const count = pick(random, [0, 1, 2, 5000]);
  const list = Array.from(
    { length: count },
    () =>
      packed([4, pick(random, [0, 1, 511, 512, 513, 0xffff_fe00, 0xffff_ffff])], [
        4,
        hostileWord(random),
      ]),
  );
  const body = joined(packed([4, id]), ...list, anyBytes(random, random.chance(0.9) ? 0 : 3));
  return chunk(cookie, Type.Status, body, random.chance(0.9));
}
