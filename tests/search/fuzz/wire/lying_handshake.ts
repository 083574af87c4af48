/**
 * What an NBD server answers in a handshake: the truth, or what real and malicious servers might.
 *
 * @module
 */
import type { Random } from "../../../../src/testing/random.ts";
import { joined, packed } from "../../../support/nbd_client.ts";
import { anyBytes, hostileWord, pick } from "./choose.ts";

/** What a server offers. */
export interface Offer {
  readonly sizeBytes: bigint;
  readonly flags: number;
  readonly leastBytes: number;
  readonly mostBytes: number;
  readonly structured: boolean;
  readonly contextId: number | null;
  /** Whether it knows NBD_OPT_GO. */
  readonly knowsGo: boolean;
}

/** Offers that no client should take as they are. */
export const LIES: readonly Partial<Offer>[] = [
  { sizeBytes: 0n },
  { sizeBytes: 511n },
  { sizeBytes: 513n },
  { sizeBytes: (1n << 53n) - 1n },
  { sizeBytes: 1n << 53n },
  { sizeBytes: 1n << 63n },
  { sizeBytes: (1n << 64n) - 1n },
  { leastBytes: 0 },
  { leastBytes: 4096 },
  { leastBytes: 0xffff_ffff },
  { mostBytes: 0 },
  { mostBytes: 511 },
  { mostBytes: 513 },
  { mostBytes: 1024 },
  { flags: 0 },
  { flags: 0xffff },
  { flags: 3 },
  { structured: false, contextId: null },
  { contextId: 0 },
  { contextId: 0xffff_ffff },
  { knowsGo: false },
];

/** The answers to an option. */
export interface OptionAnswers {
  readonly messages: readonly Uint8Array[];
  readonly after: "options" | "requests" | "end";
}

const Opt = { ExportName: 1, StructuredReply: 8, SetMetaContext: 10, Go: 7 } as const;
const Rep = { Ack: 1, Info: 3, MetaContext: 4, Unsupported: 0x8000_0001 } as const;
const REFUSALS = [
  0x80000001,
  0x80000002,
  0x80000003,
  0x80000005,
  0x80000006,
  0x80000007,
  0x8000_0008,
];

function reply(option: number, type: number, content: Uint8Array = new Uint8Array(0)): Uint8Array {
  const head = packed([8, 0x0003e889045565a9n], [4, option], [4, type], [4, content.length]);
  return joined(head, content);
}

interface Situation {
  readonly offer: Offer;
  readonly noZeroes: boolean;
  readonly hostility: number;
}

/** The answers of a server to an option. */
export function handshakeAnswer(
  random: Random,
  option: number,
  situation: Situation,
): OptionAnswers {
  if (random.chance(situation.hostility / 8)) return hostileAnswer(random, option, situation);
  const { offer, noZeroes } = situation;
  const options = (...messages: Uint8Array[]): OptionAnswers => ({ messages, after: "options" });
  switch (option) {
    case Opt.StructuredReply:
      return options(reply(option, offer.structured ? Rep.Ack : Rep.Unsupported));
    case Opt.SetMetaContext: {
      if (offer.contextId === null) return options(reply(option, Rep.Unsupported));
      const name = new TextEncoder().encode("base:allocation");
      const content = joined(packed([4, offer.contextId]), name);
      return options(reply(option, Rep.MetaContext, content), reply(option, Rep.Ack));
    }
    case Opt.Go: {
      if (!offer.knowsGo) return options(reply(option, Rep.Unsupported));
      const about = packed([2, 0], [8, offer.sizeBytes], [2, offer.flags]);
      const sizes = packed([2, 3], [4, offer.leastBytes], [4, 4096], [4, offer.mostBytes]);
      const messages = [reply(option, Rep.Info, about), reply(option, Rep.Info, sizes)];
      return { messages: [...messages, reply(option, Rep.Ack)], after: "requests" };
    }
    default: {
      const padding = new Uint8Array(noZeroes ? 0 : 124);
      const answer = joined(packed([8, offer.sizeBytes], [2, offer.flags]), padding);
      return { messages: [answer], after: "requests" };
    }
  }
}

function hostileAnswer(random: Random, option: number, { offer }: Situation): OptionAnswers {
  const options = (...messages: Uint8Array[]): OptionAnswers => ({ messages, after: "options" });
  switch (random.below(8)) {
    case 0:
      return options(reply(option, pick(random, REFUSALS), anyBytes(random, random.below(60))));
    case 1:
      return options(reply(option, pick(random, REFUSALS), new Uint8Array(20_000).fill(0x61)));
    case 2:
      return options(
        ...Array.from({ length: 100 }, () => reply(option, Rep.Info, anyBytes(random, 12))),
      );
    case 3:
      return options(reply(option, hostileWord(random), anyBytes(random, random.below(20))));
    case 4: // An announced length that is not that of what follows.
      return options(
        packed([8, 0x0003e889045565a9n], [4, option], [4, Rep.Info], [
          4,
          hostileWord(random, [16384]),
        ]),
      );
    case 5:
      return options(reply(hostileWord(random), Rep.Ack));
    case 6: {
      const content = joined(packed([4, hostileWord(random)]), anyBytes(random, random.below(40)));
      return options(reply(option, Rep.MetaContext, content), reply(option, Rep.Ack));
    }
    default: {
      const about = packed([2, random.below(5)], [8, offer.sizeBytes], [2, offer.flags]);
      const cut = about.subarray(0, random.below(13));
      return {
        messages: [reply(option, Rep.Info, cut), reply(option, Rep.Ack)],
        after: "requests",
      };
    }
  }
}
