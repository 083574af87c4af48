const MICROSECONDS_PER_MS = 1000;
const MICROSECONDS_PER_S = 1_000_000;

/** Formats a number in three digits, without zeros at the end. */
function threeDigits(value: number): string {
  return `${value >= 100 ? Math.round(value) : Number(value.toPrecision(3))}`;
}

/** Formats a time of microseconds: `85 µs`, `1.25 ms`, `3 s`. */
export function formatMicroseconds(microseconds: number): string {
  if (microseconds < MICROSECONDS_PER_MS) return `${threeDigits(microseconds)} µs`;
  if (microseconds < MICROSECONDS_PER_S) {
    return `${threeDigits(microseconds / MICROSECONDS_PER_MS)} ms`;
  }
  return `${threeDigits(microseconds / MICROSECONDS_PER_S)} s`;
}
