/** What statistics are made of. */
export type StatisticsValue =
  | string
  | number
  | boolean
  | null
  | readonly StatisticsValue[]
  | { readonly [key: string]: StatisticsValue };

/**
 * Statistics as JSON on one line, spaced as the reference spaces them: `{ "secs": [ 0, 8 ] }`.
 * Programs that read it line by line, or by pattern, find what they are used to.
 */
export function formatStatistics(value: StatisticsValue): string {
  if (typeof value !== "object" || value === null) return JSON.stringify(value);
  if (isList(value)) return `[ ${value.map(formatStatistics).join(", ")} ]`;
  const fields = Object.entries(value)
    .map(([key, field]) => `${JSON.stringify(key)}: ${formatStatistics(field)}`);
  return `{ ${fields.join(", ")} }`;
}

function isList(value: StatisticsValue): value is readonly StatisticsValue[] {
  return Array.isArray(value);
}
