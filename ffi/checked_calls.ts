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

/**
 * 32-bit types are converted, so that `-0` arrives as 0; a number that the conversion changes
 * otherwise is refused. 64-bit types are checked and passed on unconverted: the runtime takes `-0`
 * for 0 there, and a conversion could allocate.
 */
const CONVERSIONS: Readonly<Record<string, string>> = { i32: "| 0", u32: ">>> 0" };
/** The least number of a 64-bit type, and the one after its largest. */
const RANGES: Readonly<Record<string, readonly [number, number]>> = {
  i64: [-(2 ** 63), 2 ** 63],
  isize: [-(2 ** 63), 2 ** 63],
  u64: [0, 2 ** 64],
  usize: [0, 2 ** 64],
};

/** Types that are not numbers; the runtime checks them. */
const REFERENCES = new Set<unknown>(["buffer", "pointer"]);

/** Throws for an argument that is not a number of its parameter's type. */
function refuse(name: string, parameter: number, type: string, value: unknown): never {
  throw new RangeError(`Cannot call ${name}: its parameter ${parameter} (${type}) is ${value}`);
}

function rangeOf(name: string, type: unknown): readonly [number, number] {
  const range = RANGES[String(type)];
  if (range === undefined) throw new TypeError(`Cannot check the type ${type} of ${name}`);
  return range;
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
  const [least, end] = rangeOf(name, type);
  const fits =
    `Math.floor(${variable}) === ${variable} && ${variable} >= ${least} && ${variable} < ${end}`;
  return `${fits} ? ${variable} : ${refusal}`;
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

type Check = (value: never) => unknown;

/** What `argument` has as source text. */
function checkOf(name: string, index: number, type: unknown): Check {
  if (REFERENCES.has(type)) return (value) => value;
  const refused = (value: unknown): never => refuse(name, index + 1, String(type), value);
  if (type === "i32") return (value) => (value | 0) === value ? value | 0 : refused(value);
  if (type === "u32") return (value) => (value >>> 0) === value ? value >>> 0 : refused(value);
  const [least, end] = rangeOf(name, type);
  return (value) =>
    Math.floor(value) === value && value >= least && value < end ? value : refused(value);
}

/**
 * As `checkedCalls` for one function, without code that is made for it: ready in a tenth of the time, and
 * slower at each call.
 */
export function checkedCall(
  name: string,
  { parameters }: Signature,
  raw: (...args: never[]) => unknown,
): (...args: never[]) => unknown {
  const checks = parameters.map((type, index) => checkOf(name, index, type));
  return (...args) => raw(...checks.map((check, index) => check(args[index]) as never));
}
