/**
 * Requests to an NBD disk, valid and not, and a model of what the disk must hold and answer.
 *
 * @module
 */
import type { Random } from "../../../../src/testing/random.ts";
import {
  Cmd,
  CmdFlag,
  joined,
  packed,
  type Reply,
  WireError,
} from "../../../support/nbd_client.ts";
import { hostileLong, hostileWord, pick, word } from "./choose.ts";

const SECTOR = 512;
const REQUEST_MAGIC = 0x25609513;
/** The longest read or write, bytes. */
const LONGEST = 32 << 20;
const KNOWN = [Cmd.Read, Cmd.Write, Cmd.Flush, Cmd.Trim, Cmd.WriteZeroes, Cmd.BlockStatus];

export interface DiskRequest {
  readonly command: number;
  readonly flags: number;
  readonly offset: bigint;
  readonly length: number;
  readonly cookie: number;
  /** The words of the sectors of a write, which its payload repeats. */
  readonly stamp: number;
  readonly error: number;
}

/** What was agreed on in the handshake. */
export interface Terms {
  readonly structured: boolean;
  readonly meta: boolean;
}

/** Which sectors a client may change, and whether the model follows it. */
export interface Region {
  readonly first: number;
  readonly sectors: number;
  readonly isModelled: boolean;
}

/** The error with which a request must end. */
function judge(
  { command, flags, offset, length }: Omit<DiskRequest, "error" | "stamp" | "cookie">,
  { structured, meta }: Terms,
  diskBytes: number,
): number {
  if (!KNOWN.some((known) => known === command)) return WireError.Inval;
  let known: number = CmdFlag.Fua;
  if (command === Cmd.Read) known |= CmdFlag.Df;
  if (command === Cmd.WriteZeroes) known |= CmdFlag.NoHole;
  if (command === Cmd.BlockStatus) known |= CmdFlag.ReqOne;
  if ((flags & ~known) !== 0) return WireError.Inval;
  const isWhole = (flags & CmdFlag.Df) !== 0;
  if (isWhole && !structured) return WireError.Inval;
  if (command === Cmd.Flush) return offset !== 0n || length !== 0 ? WireError.Inval : 0;
  if (command === Cmd.BlockStatus && (!meta || length === 0)) return WireError.Inval;
  if ((offset & 511n) !== 0n || (length & 511) !== 0) return WireError.Inval;
  const isData = command === Cmd.Read || command === Cmd.Write;
  if (isData && length > LONGEST) return isWhole ? WireError.Overflow : WireError.Inval;
  if (offset + BigInt(length) <= BigInt(diskBytes)) return 0;
  return command === Cmd.Write ? WireError.NoSpace : WireError.Inval;
}

/** A disk whose sectors each repeat one word. */
export class DiskModel {
  /** By sector: the words that it may hold; a sector that is not here holds zeros. */
  readonly #words = new Map<number, readonly number[]>();
  #stamp = 0;

  constructor(readonly diskBytes: number) {}

  /** A request that the server must carry out. */
  good(random: Random, terms: Terms, region: Region, cookie: number): DiskRequest {
    const commands = terms.meta ? KNOWN : KNOWN.slice(0, 5);
    let command: number = pick(random, commands);
    if (random.chance(0.4)) command = pick(random, [Cmd.Read, Cmd.Write]);
    const most = random.chance(0.03) ? 4096 : random.chance(0.2) ? 600 : 16;
    const count = Math.min(region.sectors, random.below(most + 1));
    const sector = region.first + random.below(region.sectors - count + 1);
    let flags: number = random.chance(0.2) ? CmdFlag.Fua : 0;
    if (command === Cmd.Read && terms.structured && random.chance(0.3)) flags |= CmdFlag.Df;
    if (command === Cmd.WriteZeroes && random.chance(0.4)) flags |= CmdFlag.NoHole;
    if (command === Cmd.BlockStatus && random.chance(0.4)) flags |= CmdFlag.ReqOne;
    const isFlush = command === Cmd.Flush;
    const least = command === Cmd.BlockStatus ? 1 : 0;
    const offset = isFlush ? 0n : BigInt(Math.max(0, sector - least) * SECTOR);
    const length = isFlush ? 0 : Math.max(least, count) * SECTOR;
    return this.#request({ command, flags, offset, length }, terms, cookie);
  }

  /** Any request that changes nothing outside of `region`. */
  hostile(random: Random, terms: Terms, region: Region, cookie: number): DiskRequest {
    for (;;) {
      const good = this.good(random, terms, region, cookie);
      const dice = random.below(5);
      const limits = [this.diskBytes, LONGEST, 256 * 1024, SECTOR];
      const request = this.#request(
        {
          command: dice === 0 ? hostileWord(random) & 0xffff : good.command,
          flags: dice === 1 ? hostileWord(random) & 0xffff : good.flags,
          offset: dice === 2 || dice === 4 ? hostileLong(random, limits) : good.offset,
          length: dice === 3 || dice === 4 ? hostileWord(random, limits) : good.length,
        },
        terms,
        cookie,
      );
      if (request.command === Cmd.Disc) continue;
      if (this.#isTooMuch(request) || !this.#staysIn(request, region)) continue;
      return request;
    }
  }

  /** The payload of a write that is refused follows it; what is longer is not worth its time. */
  #isTooMuch({ command, length, error }: DiskRequest): boolean {
    if (command === Cmd.Write) return length > 1 << 20;
    return command === Cmd.Read && error === 0 && length > 4 << 20;
  }

  #staysIn({ command, offset, length, error }: DiskRequest, region: Region): boolean {
    if (error !== 0) return true;
    if (command === Cmd.Read || command === Cmd.Flush || command === Cmd.BlockStatus) return true;
    const first = Number(offset / 512n);
    return first >= region.first && first + length / SECTOR <= region.first + region.sectors;
  }

  #request(
    fields: Omit<DiskRequest, "error" | "stamp" | "cookie">,
    terms: Terms,
    cookie: number,
  ): DiskRequest {
    const error = judge(fields, terms, this.diskBytes);
    this.#stamp = (this.#stamp + 1) & 0x7fff_ffff;
    return { ...fields, cookie, stamp: this.#stamp, error };
  }

  /**
   * What the requests of a flight do, whose order nobody knows: each sector may hold what any of
   * them left there, or what it held before when none surely wrote it.
   */
  apply(requests: readonly DiskRequest[], region: Region): void {
    if (!region.isModelled) return;
    const written = new Map<number, Set<number>>();
    const maybe = new Map<number, Set<number>>();
    for (const { command, offset, length, stamp, error } of requests) {
      const isTrim = command === Cmd.Trim;
      if (error !== 0 || (command !== Cmd.Write && command !== Cmd.WriteZeroes && !isTrim)) {
        continue;
      }
      const map = isTrim ? maybe : written;
      const first = Number(offset / 512n);
      for (let sector = first; sector < first + length / SECTOR; sector++) {
        const words = map.get(sector) ?? new Set();
        map.set(sector, words.add(command === Cmd.Write ? stamp : 0));
      }
    }
    for (const [sector, words] of written) {
      this.#words.set(sector, [...words, ...maybe.get(sector) ?? []]);
    }
    for (const [sector, words] of maybe) {
      if (!written.has(sector)) this.#words.set(sector, [...this.#held(sector), ...words]);
    }
  }

  #held(sector: number): readonly number[] {
    return this.#words.get(sector) ?? [0];
  }

  /**
   * What a sector may hold during a flight; null where requests of the flight write, because a read
   * may see a part of each.
   */
  during(
    requests: readonly DiskRequest[],
    { first, sectors }: Region,
  ): (sector: number) => readonly number[] | null {
    const writes = requests.filter(({ command, error }) =>
      error === 0 && (command === Cmd.Write || command === Cmd.WriteZeroes || command === Cmd.Trim)
    );
    return (sector) => {
      if (sector < first || sector >= first + sectors) return null;
      const at = BigInt(sector * SECTOR);
      const isBusy = writes.some(({ offset, length }) =>
        at >= offset && at < offset + BigInt(length)
      );
      return isBusy ? null : this.#held(sector);
    };
  }
}

/** The bytes of a request, with its payload. */
export function requestBytes(request: DiskRequest, magic = REQUEST_MAGIC): Uint8Array {
  const { command, flags, offset, length, cookie, stamp } = request;
  const header = packed([4, magic], [2, flags], [2, command], [8, cookie], [8, offset], [
    4,
    length,
  ]);
  if (command !== Cmd.Write) return header;
  return joined(header, payloadOf(stamp, length));
}

function payloadOf(stamp: number, length: number): Uint8Array {
  return new Uint8Array(new Uint32Array(Math.ceil(length / 4)).fill(stamp).buffer, 0, length);
}

/** Compares a reply with its request. */
export function checkReply(
  reply: Reply,
  request: DiskRequest,
  { structured }: Terms,
  wordsAt: ((sector: number) => readonly number[] | null) | null,
): void {
  const { command, offset, length, error } = request;
  // The server's numbers are exact up to 2^53: beyond that it may not see that an offset is odd.
  const isFar = offset >= 1n << 53n && error === WireError.Inval;
  const isRight = reply.error === error ||
    (isFar && [WireError.NoSpace, WireError.Overflow].some((other) => other === reply.error));
  const fail = (what: string): never => {
    const shown = JSON.stringify({ ...request, offset: `${offset}` });
    throw new Error(`${what}, of the request ${shown}`);
  };
  if (!isRight) fail(`Error ${reply.error} and not ${error}`);
  const isRanged = command === Cmd.Read || command === Cmd.BlockStatus;
  if ((reply.chunks.length > 0) !== (structured && isRanged)) fail(`Chunks ${reply.chunks}`);
  if (error !== 0) return;
  if (command === Cmd.Read) {
    if (reply.data.length !== length) fail(`${reply.data.length} bytes`);
    if (wordsAt !== null) checkWords(reply.data, Number(offset / 512n), wordsAt, fail);
  } else if (command === Cmd.BlockStatus) {
    const sum = reply.extents.reduce((total, [bytes]) => total + bytes, 0);
    const areRight = reply.extents.length > 0 && sum <= length &&
      reply.extents.every(([bytes, state]) => bytes > 0 && bytes % SECTOR === 0 && state <= 3);
    if (!areRight) fail(`Extents ${JSON.stringify(reply.extents)}`);
  } else if (reply.data.length > 0) fail("Data");
}

function checkWords(
  data: Uint8Array,
  first: number,
  wordsAt: (sector: number) => readonly number[] | null,
  fail: (what: string) => never,
): void {
  const copy = data.slice();
  const words = new Uint32Array(copy.buffer);
  for (let sector = 0; sector < words.length / 128; sector++) {
    const start = sector * 128;
    const value = words[start];
    const allowed = wordsAt(first + sector);
    if (allowed === null) continue;
    for (let i = start + 1; i < start + 128; i++) {
      if (words[i] !== value) {
        return fail(`Sector ${first + sector} is torn: ${value}, ${words[i]}`);
      }
    }
    if (!allowed.includes(value)) {
      return fail(`Sector ${first + sector} holds ${value} and not ${allowed.join(" or ")}`);
    }
  }
}

/**
 * The cookie of a request: at times one that others have too, where replies without content do not
 * tell them apart.
 */
export function anyCookie(random: Random, { command, cookie, error }: DiskRequest): number {
  const hasContent = error === 0 && (command === Cmd.Read || command === Cmd.BlockStatus);
  if (hasContent || random.chance(0.9)) return cookie;
  return pick(random, [0, 1, 0xffff_ffff, word(random)]);
}
