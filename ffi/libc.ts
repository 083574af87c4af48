/**
 * The base of `ffi`: libraries opened by soname, addresses and C strings.
 *
 * `ffi` is the border to C: libc, the kernel's interfaces, system libraries. Only this folder calls
 * `Deno.dlopen`, and only this folder knows offsets of fields in C structs; layouts are those of
 * Linux on x86-64. It must not import from `src`.
 *
 * @module
 */

import { checkedCall, checkedCalls } from "./checked_calls.ts";
import { encodeName } from "./names.ts";

/**
 * Types 64-bit integer parameters as numbers, which the runtime takes; Deno's types want BigInts.
 */
type WithNumbers<Call> = Call extends (...args: infer Args) => infer Result ? (
    ...args: { [Index in keyof Args]: Args[Index] extends bigint ? number : Args[Index] }
  ) => Result
  : never;

/** The functions of a library, with numbers for all integer parameters. */
export type Calls<Symbols extends Deno.ForeignLibraryInterface> = {
  [Name in keyof Deno.DynamicLibrary<Symbols>["symbols"]]: WithNumbers<
    Deno.DynamicLibrary<Symbols>["symbols"][Name]
  >;
};

/**
 * Opens a library. Each file of this folder declares the symbols that it calls. 64-bit parameters
 * take numbers, so that calls allocate no BigInt; every number is checked, see `checked_calls.ts`.
 *
 * @param soname Such as `libc.so.6`.
 * @throws When the library or a symbol is missing.
 */
export function openLibrary<const Symbols extends Deno.ForeignLibraryInterface>(
  soname: string,
  symbols: Symbols,
): Calls<Symbols> {
  const raw = Deno.dlopen(soname, symbols).symbols;
  const signatures = symbols as Record<string, Deno.ForeignFunction>;
  return checkedCalls(signatures, raw as Parameters<typeof checkedCalls>[1]) as Calls<Symbols>;
}

/** Opens libc, as `openLibrary` does. */
export function openLibc<const Symbols extends Deno.ForeignLibraryInterface>(
  symbols: Symbols,
): Calls<Symbols> {
  return openLibrary("libc.so.6", symbols);
}

/**
 * Finds each function of libc when it is called first, and has no code made for it, neither for a direct call
 * nor for the checks: that takes the runtime half a millisecond, ten times as much as the rest, and a
 * short-lived program calls most functions once. Not for calls of the data path: those that
 * {@linkcode openLibc} opens are faster.
 */
export function openLibcLater<const Symbols extends Deno.ForeignLibraryInterface>(
  symbols: Symbols,
): Calls<Symbols> {
  // From sources all are opened at once: in tests, the runtime takes one that a test opens for a leak.
  if (!Deno.build.standalone) return openLibc(symbols);
  const later = Object.entries(symbols).map(([name, symbol]) => {
    let call: AnyCall | undefined;
    return [name, (...args: never[]): unknown => {
      call ??= findCall(name, symbol);
      return call(...args);
    }];
  });
  return Object.fromEntries(later);
}

type AnyCall = (...args: never[]) => unknown;

/** Results whose type in JavaScript is not the same when a function is called by its address. */
const WIDE_RESULTS = new Set<unknown>(["i64", "u64", "isize", "usize"]);

function findCall(name: string, symbol: Deno.ForeignLibraryInterface[string]): AnyCall {
  if ("parameters" in symbol && symbol.nonblocking !== true && !WIDE_RESULTS.has(symbol.result)) {
    const { parameters, result } = symbol;
    const address = addressInLibc(symbol.name ?? name);
    const found = new Deno.UnsafeFnPointer(address, { parameters, result });
    return checkedCall(name, symbol, found.call.bind(found) as AnyCall);
  }
  return (openLibc({ [name]: symbol }) as Record<string, AnyCall>)[name];
}

/** The address of a function of libc. Throws for a missing one. */
function addressInLibc(name: string): Deno.PointerObject<Deno.ForeignFunction> {
  // Of a variable the runtime returns the address, and makes no code as it does for a function.
  const { symbols } = Deno.dlopen("libc.so.6", { [name]: { type: "pointer" } });
  return symbols[name] as Deno.PointerObject<Deno.ForeignFunction>;
}

/** The address of a pointer, as a number; 0 for null. Addresses fit in 53 bits. */
export function pointerAddress(pointer: Deno.PointerValue): number {
  return Number(Deno.UnsafePointer.value(pointer));
}

/**
 * The pointer object for an address. Functions of the data path take pointers, buffers and 32-bit
 * numbers only: the runtime compiles such calls, and takes a slower path for 64-bit numbers.
 *
 * @throws {TypeError} The address is 0.
 */
export function pointerTo(address: number): Deno.PointerObject {
  const pointer = Deno.UnsafePointer.create(BigInt(address));
  if (pointer === null) throw new TypeError("Cannot point to address 0");
  return pointer;
}

/** A view of `sizeBytes` bytes of memory at `address`. It copies nothing. */
export function memoryAt(address: number, sizeBytes: number): ArrayBuffer {
  return Deno.UnsafePointerView.getArrayBuffer(pointerTo(address), sizeBytes);
}

/**
 * A name as a C string: its bytes and a NUL.
 *
 * @throws {TypeError} The name contains a NUL.
 */
export function cString(text: string): Uint8Array<ArrayBuffer> {
  if (text.includes("\0")) {
    throw new TypeError(`Cannot use ${JSON.stringify(text)} as a path: it holds a NUL`);
  }
  const bytes = encodeName(text);
  const terminated = new Uint8Array(bytes.length + 1);
  terminated.set(bytes);
  return terminated;
}

/** The address of the first byte of a typed array. The caller must keep the array alive. */
export function addressOf(array: ArrayBufferView<ArrayBuffer>): number {
  return pointerAddress(Deno.UnsafePointer.of(array));
}
