/** What stands where there is no figure. */
export const NO_FIGURE = "-";

/** A number in at most four characters, and five from ten thousand million on: `0`, `9.5`, `125`, `12k`. */
export function shortNumber(value: number): string {
  const units = ["", "k", "M", "G", "T"];
  let unit = 0;
  let rest = value;
  // What would be rounded to a thousand is one of the next unit.
  while (rest >= 999.5 && unit < units.length - 1) {
    rest /= 1000;
    unit++;
  }
  if (rest === 0) return "0";
  const digits = rest < 9.95 && (unit > 0 || !Number.isInteger(rest)) ? 1 : 0;
  return `${rest.toFixed(digits)}${units[unit]}`;
}

/** A rate of bytes in MB (10^6) a second: `0`, `0.4`, `12.3`, `1234`. */
export function megabytes(bytesPerSecond: number): string {
  const value = bytesPerSecond / 1e6;
  if (value === 0) return "0";
  return value < 99.95 ? value.toFixed(1) : value.toFixed(0);
}

/** A time in at most five characters: `85us`, `1.2ms`, `120ms`, `2.5s`, `45min`, `12h`. */
export function shortTime(microseconds: number | null): string {
  if (microseconds === null) return NO_FIGURE;
  if (microseconds < 999.5) return `${microseconds.toFixed(0)}us`;
  const milliseconds = microseconds / 1e3;
  if (milliseconds < 999.5) return `${milliseconds.toFixed(milliseconds < 9.95 ? 1 : 0)}ms`;
  const seconds = milliseconds / 1e3;
  if (seconds < 999.5) return `${seconds.toFixed(seconds < 9.95 ? 1 : 0)}s`;
  const minutes = seconds / 60;
  return minutes < 99.5 ? `${minutes.toFixed(0)}min` : `${(minutes / 60).toFixed(0)}h`;
}

/** A part of 1 as a whole number of 100; nothing is shown as 0 that is more, nor as 100 that is less. */
export function percent(share: number | null): string {
  if (share === null) return NO_FIGURE;
  if (share <= 0) return "0";
  if (share >= 1) return "100";
  return String(Math.min(99, Math.max(1, Math.round(share * 100))));
}
