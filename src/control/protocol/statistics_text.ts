/**
 * Statistics as JSON on one line, spaced as the reference spaces them: `{ "secs": [ 0, 8 ] }`.
 * Programs that read it line by line, or by pattern, find what they are used to.
 */
export function formatStatistics(value: unknown): string {
  if (Array.isArray(value)) return `[ ${value.map(formatStatistics).join(", ")} ]`;
  if (typeof value !== "object" || value === null) return JSON.stringify(value);
  const fields = Object.entries(value)
    .map(([key, field]) => `${JSON.stringify(key)}: ${formatStatistics(field)}`);
  return `{ ${fields.join(", ")} }`;
}
