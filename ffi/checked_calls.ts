/**
 * The border to C: every number is checked before a call takes it. The runtime itself throws for
 * `-0` where C wants 32 bits, and takes NaN for 0 and 1.5 for 1 where C wants 64: a length or an
 * address would be wrong and nobody would know.
 *
 * @module
 */

/** A symbol's C types, as `Deno.dlopen` takes them. */
interface Signature {
  readonly parameters: readonly unknown[];
}

/** Calls by the names of their symbols. */
type Calls = Record<string, (...args: never[]) => unknown>;

/** Texts of expressions in which `$` stands for the argument. */
interface Conversion {
  readonly holds: string;
  readonly value: string;
}

/**
 * What passes for a number of each type, and what the call is given. A 32-bit number is
 * converted, so that `-0` arrives as 0. The runtime takes `-0` for 0 where C wants 64 bits, and
 * such a number goes on as it is: a conversion could allocate.
 */
const CONVERSIONS: Readonly<Record<string, Conversion>> = {
  i32: { holds: "($ | 0) === $", value: "$ | 0" },
  u32: { holds: "($ >>> 0) === $", value: "$ >>> 0" },
  i64: { holds: `Math.floor($) === $ && $ >= ${-(2 ** 63)} && $ < ${2 ** 63}`, value: "$" },
  isize: { holds: `Math.floor($) === $ && $ >= ${-(2 ** 63)} && $ < ${2 ** 63}`, value: "$" },
  u64: { holds: `Math.floor($) === $ && $ >= 0 && $ < ${2 ** 64}`, value: "$" },
  usize: { holds: `Math.floor($) === $ && $ >= 0 && $ < ${2 ** 64}`, value: "$" },
};

/** Types that are no numbers, which the runtime checks itself. */
const REFERENCES = new Set<unknown>(["buffer", "pointer"]);

/** Throws, because an argument is no number of its parameter's type. */
function refuse(name: string, parameter: number, type: string, value: unknown): never {
  throw new RangeError(`Cannot call ${name}: its parameter ${parameter} (${type}) is ${value}`);
}

function argument(name: string, index: number, type: unknown): string {
  const variable = `a${index}`;
  if (REFERENCES.has(type)) return variable;
  const conversion = CONVERSIONS[String(type)];
  if (conversion === undefined) throw new TypeError(`Cannot check the type ${type} of ${name}`);
  const holds = conversion.holds.replaceAll("$", variable);
  const value = conversion.value.replaceAll("$", variable);
  return `${holds} ? ${value} : refuse("${name}", ${index + 1}, "${type}", ${variable})`;
}

function checkedSource(name: string, { parameters }: Signature): string {
  const names = parameters.map((_, index) => `a${index}`).join(", ");
  const checked = parameters.map((type, index) => argument(name, index, type)).join(", ");
  return `${name}(${names}) { return raw_${name}(${checked}); }`;
}

/**
 * Calls that check their numbers and then make the calls of the same names in `raw`. An argument
 * that is not a whole number in its type's range throws `RangeError`, and the call is not made.
 *
 * The code is written here, one function for each symbol: the runtime compiles a call to C into
 * its caller where it has seen but one target in that place, and a function that all symbols share
 * would see all of them. So a check costs a comparison, and nothing is allocated.
 */
export function checkedCalls<Raw extends Calls>(
  signatures: Readonly<Record<string, Signature>>,
  raw: Raw,
): Raw {
  const names = Object.keys(signatures);
  const taken = names.map((name) => `const raw_${name} = raw.${name};`).join("\n");
  const checked = names.map((name) => checkedSource(name, signatures[name])).join(",\n");
  const source = `"use strict";\n${taken}\nreturn {\n${checked}\n};`;
  return new Function("raw", "refuse", source)(raw, refuse) as Raw;
}
