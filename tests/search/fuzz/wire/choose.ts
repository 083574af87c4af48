import type { Random } from "../../../../src/testing/random.ts";

/** One of a list. */
export function pick<T>(random: Random, list: readonly T[]): T {
  return list[random.below(list.length)];
}

/** Any 32 bits. */
export function word(random: Random): number {
  return ((random.bits() << 1) ^ random.bits()) >>> 0;
}

/** A number of 32 bits of which bugs are made: limits, their neighbours, and any. */
export function hostileWord(random: Random, limits: readonly number[] = []): number {
  const dice = random.below(10);
  if (dice < 4 && limits.length > 0) return (pick(random, limits) + random.below(5) - 2) >>> 0;
  if (dice < 7) return (2 ** random.below(33) + random.below(3) - 1) >>> 0;
  return dice < 8 ? random.below(64) : word(random);
}

/** A number of 64 bits. */
export function hostileLong(random: Random, limits: readonly number[] = []): bigint {
  const near = BigInt(random.below(5) - 2);
  const dice = random.below(10);
  let value: bigint;
  if (dice < 4 && limits.length > 0) value = BigInt(pick(random, limits)) + near;
  else if (dice < 8) value = (1n << BigInt(random.below(65))) + near;
  else value = (BigInt(word(random)) << 32n) | BigInt(word(random));
  return BigInt.asUintN(64, value);
}

/** Bytes of any value. */
export function anyBytes(random: Random, length: number): Uint8Array<ArrayBuffer> {
  const bytes = new Uint8Array(length);
  for (let i = 0; i < length; i++) bytes[i] = random.bits();
  return bytes;
}

/** Changes some bits, bytes or the length of a message. */
export function mutated(random: Random, bytes: Uint8Array): Uint8Array<ArrayBuffer> {
  let copy = Uint8Array.from(bytes);
  for (let left = 1 + random.below(3); left > 0 && copy.length > 0; left--) {
    const at = random.below(copy.length);
    switch (random.below(5)) {
      case 0:
        copy[at] ^= 1 << random.below(8);
        break;
      case 1:
        copy[at] = pick(random, [0, 1, 0x7f, 0x80, 0xff]);
        break;
      case 2:
        copy = copy.slice(0, at);
        break;
      case 3:
        copy.fill(random.bits(), at, at + 1 + random.below(8));
        break;
      default:
        copy = Uint8Array.from([...copy.subarray(0, at), ...anyBytes(random, 1 + random.below(8))]);
    }
  }
  return copy;
}
