/** A number in a table: no digits behind the point where there are many before it. */
export function numberText(value: number): string {
  if (value < 9.95 && !Number.isInteger(value)) return value.toFixed(1);
  return String(Math.round(value)).replace(/\B(?=(\d{3})+$)/g, "\u2009");
}

/** A time of so many microseconds; a dash where nothing is known. */
export function latencyText(us: number | null): string {
  if (us === null) return "–";
  if (us < 100) return `${Math.round(us)} µs`;
  const ms = us / 1000;
  if (ms < 1) return `${ms.toFixed(2)} ms`;
  return ms < 1000 ? `${ms.toFixed(ms < 10 ? 1 : 0)} ms` : `${(ms / 1000).toFixed(1)} s`;
}

/** The time of a day, UTC: `21:03:59`. */
export function timeText(atMs: number): string {
  return new Date(atMs).toISOString().slice(11, 19);
}

/** The last part of an image's name: `disk.vhd` of `vhd:/srv/disk.vhd`. */
export function shortName(name: string): string {
  const colon = name.indexOf(":");
  const path = colon < 0 ? name : name.slice(colon + 1);
  const last = path.slice(path.lastIndexOf("/") + 1);
  return last === "" ? name : last;
}
