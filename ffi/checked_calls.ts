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

/** The text of what must hold of an argument, by the name of its variable. */
type Condition = (argument: string) => string;

const isWhole = (least: number, end: number): Condition => (argument) =>
  `Math.floor(${argument}) === ${argument} && ${argument} >= ${least} && ${argument} < ${end}`;

/**
 * What is converted to 32 bits, so that `-0` arrives as 0, and holds if that changes nothing else.
 * The runtime takes `-0` for 0 where C wants 64 bits, and such a number goes on as it is: a
 * conversion could allocate.
 */
const CONVERSIONS: Readonly<Record<string, string>> = { i32: "| 0", u32: ">>> 0" };
const CONDITIONS: Readonly<Record<string, Condition>> = {
  i64: isWhole(-(2 ** 63), 2 ** 63),
  isize: isWhole(-(2 ** 63), 2 ** 63),
  u64: isWhole(0, 2 ** 64),
  usize: isWhole(0, 2 ** 64),
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
  const refusal = `refuse("${name}", ${index + 1}, "${type}", ${variable})`;
  const conversion = CONVERSIONS[String(type)];
  if (conversion !== undefined) {
    const converted = `${variable} ${conversion}`;
    return `(${converted}) === ${variable} ? ${converted} : ${refusal}`;
  }
  const condition = CONDITIONS[String(type)];
  if (condition === undefined) throw new TypeError(`Cannot check the type ${type} of ${name}`);
  return `${condition(variable)} ? ${variable} : ${refusal}`;
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
