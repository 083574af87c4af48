/** Whether bit `index`, below 2^32, is set. Bit 0 is the most significant bit of the first byte. */
export function testBit(bits: Uint8Array, index: number): boolean {
  return (bits[index >>> 3] & (0x80 >>> (index & 7))) !== 0;
}

export function setBit(bits: Uint8Array, index: number): void {
  bits[index >>> 3] |= 0x80 >>> (index & 7);
}

export function clearBit(bits: Uint8Array, index: number): void {
  bits[index >>> 3] &= ~(0x80 >>> (index & 7));
}

/** Sets `count` bits from `index` on, which may be beyond 2^32: places are divided, not shifted. */
export function setBits(bits: Uint8Array, index: number, count: number): void {
  const end = index + count;
  const first = Math.floor(index / 8);
  const last = Math.floor(end / 8);
  const fromIndex = 0xff >>> (index & 7);
  const fromEnd = 0xff >>> (end & 7);
  if (first === last) {
    if (count > 0) bits[first] |= fromIndex & ~fromEnd;
    return;
  }
  bits[first] |= fromIndex;
  bits.fill(0xff, first + 1, last);
  if ((end & 7) !== 0) bits[last] |= ~fromEnd;
}

/** The end of the run of equal bits that starts at `index`, at most `end`. */
export function runEnd(bits: Uint8Array, index: number, end: number): number {
  const set = testBit(bits, index);
  const same = set ? 0xff : 0;
  while (++index < end) {
    if ((index & 7) === 0) {
      while (index + 8 <= end && bits[index >>> 3] === same) index += 8;
      if (index >= end) return end;
    }
    if (testBit(bits, index) !== set) return index;
  }
  return end;
}

/** Whether the first `count` bits are all set. */
export function allSet(bits: Uint8Array, count: number): boolean {
  return count === 0 || (testBit(bits, 0) && runEnd(bits, 0, count) === count);
}

/** The number of set bits among the first `count`. */
export function countSet(bits: Uint8Array, count: number): number {
  let set = 0;
  for (let at = 0; at < count;) {
    const end = runEnd(bits, at, count);
    if (testBit(bits, at)) set += end - at;
    at = end;
  }
  return set;
}
