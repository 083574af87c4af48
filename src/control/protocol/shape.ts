/**
 * What values from another program must look like.
 *
 * @module
 */

/** Looks at a value; returns where it is not as it must be, such as `images.0.name`, and null when it is. */
export type Shape = (value: unknown, at: string) => string | null;

export function isNumber(value: unknown, at: string): string | null {
  return typeof value === "number" ? null : at;
}

export function isText(value: unknown, at: string): string | null {
  return typeof value === "string" ? null : at;
}

export function isFlag(value: unknown, at: string): string | null {
  return typeof value === "boolean" ? null : at;
}

/** Null, or of a shape. */
export function orNull(shape: Shape): Shape {
  return (value, at) => value === null ? null : shape(value, at);
}

/** Not there, or of a shape: a program of before does not know it. */
export function optional(shape: Shape): Shape {
  return (value, at) => value === undefined ? null : shape(value, at);
}

/** A list of so many values at most. */
export function listOf(shape: Shape, most: number): Shape {
  return (value, at) => {
    if (!Array.isArray(value) || value.length > most) return at;
    for (const [index, each] of value.entries()) {
      const wrong = shape(each, `${at}.${index}`);
      if (wrong !== null) return wrong;
    }
    return null;
  };
}

function entriesOf(value: unknown): [string, unknown][] | null {
  return typeof value === "object" && value !== null && !Array.isArray(value)
    ? Object.entries(value)
    : null;
}

/** Fields of any names, each of a shape. */
export function allOf(shape: Shape): Shape {
  return (value, at) => {
    for (const [name, each] of entriesOf(value) ?? [["", undefined]]) {
      const wrong = shape(each, name === "" ? at : `${at}.${name}`);
      if (wrong !== null) return wrong;
    }
    return null;
  };
}

/** Fields, each of its shape. There may be others. */
export function fieldsOf(shapes: Readonly<Record<string, Shape>>): Shape {
  return (value, at) => {
    const entries = entriesOf(value);
    if (entries === null) return at;
    const fields = new Map(entries);
    for (const [name, shape] of Object.entries(shapes)) {
      const wrong = shape(fields.get(name), at === "" ? name : `${at}.${name}`);
      if (wrong !== null) return wrong;
    }
    return null;
  };
}
