/**
 * The border to C: every number is checked before a call receives it. The runtime alone does not:
 * for a 32-bit parameter it throws at `-0`, and for a 64-bit one it silently converts NaN to 0 and
 * 1.5 to 1, which would pass a wrong length or address to the kernel.
 *
 * @module
 */

/** A symbol's C types, as `Deno.dlopen` takes them. */
interface Signature {
  readonly parameters: readonly unknown[];
}

/** Calls by the names of their symbols. */
type Calls = Record<string, (...args: never[]) => unknown>;

/** Makes the source text of the check of an argument from the name of its variable. */
type Condition = (argument: string) => string;

const isWhole = (least: number, end: number): Condition => (argument) =>
  `Math.floor(${argument}) === ${argument} && ${argument} >= ${least} && ${argument} < ${end}`;

/**
 * 32-bit types are converted, so that `-0` arrives as 0; a number that the conversion changes
 * otherwise is refused. 64-bit types are checked and passed on unconverted: the runtime takes `-0`
 * for 0 there, and a conversion could allocate.
 */
const CONVERSIONS: Readonly<Record<string, string>> = { i32: "| 0", u32: ">>> 0" };
const CONDITIONS: Readonly<Record<string, Condition>> = {
  i64: isWhole(-(2 ** 63), 2 ** 63),
  isize: isWhole(-(2 ** 63), 2 ** 63),
  u64: isWhole(0, 2 ** 64),
  usize: isWhole(0, 2 ** 64),
};

/** Types that are not numbers; the runtime checks them. */
const REFERENCES = new Set<unknown>(["buffer", "pointer"]);

/** Throws for an argument that is not a number of its parameter's type. */
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
 * Makes functions that check their numbers and then call the functions of the same names in `raw`.
 * A function throws `RangeError`, and makes no call, when an argument is not a whole number in the
 * range of its type.
 *
 * The source of one function for each symbol is generated here. The runtime inlines a call to C
 * only at a place that has one target; in a function that all symbols share, every symbol is a
 * target. So a check costs a comparison and allocates nothing.
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
