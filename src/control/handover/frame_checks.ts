/** What the parts of frames must be like: whether a value is that. */
type Check = (value: unknown) => boolean;

export function isText(value: unknown): boolean {
  return typeof value === "string";
}

export function isFlag(value: unknown): boolean {
  return typeof value === "boolean";
}

export function isCount(value: unknown): boolean {
  return Number.isSafeInteger(value) && Number(value) >= 0;
}

/** A number modulo 2^32, as elements of an Int32Array are. */
export function isInt32(value: unknown): boolean {
  return typeof value === "number" && (value | 0) === value;
}

/** Bytes in base 64. */
export function isBase64(value: unknown): boolean {
  return typeof value === "string" && value.length % 4 === 0 &&
    /^[A-Za-z0-9+/]*={0,2}$/.test(value);
}

export function isOneOf(...values: readonly unknown[]): Check {
  return (value) => values.includes(value);
}

export function isListOf(check: Check): Check {
  return (value) => Array.isArray(value) && value.every(check);
}

export function isNullOr(check: Check): Check {
  return (value) => value === null || check(value);
}

export function isAbsentOr(check: Check): Check {
  return (value) => value === undefined || check(value);
}

/** An object whose fields of these names pass their checks. It may have others. */
export function isObjectOf(checks: Readonly<Record<string, Check>>): Check {
  return (value) =>
    typeof value === "object" && value !== null && !Array.isArray(value) &&
    Object.entries(checks).every(([name, check]) =>
      check((value as Record<string, unknown>)[name])
    );
}

/** An object of numbers. */
export function areNumbers(value: unknown): boolean {
  return isObjectOf({})(value) && Object.values(value as object).every(Number.isFinite);
}
