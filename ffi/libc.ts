/**
 * The ground floor: libc, opened by soname. Nothing else in the project calls `Deno.dlopen`, and
 * nothing above this folder knows the offset of a field in a C struct. Layouts are x86-64 Linux.
 *
 * @module
 */

import { checkedCalls } from "./checked_calls.ts";
import { encodeName } from "./names.ts";

/** The runtime takes a number for any 64-bit integer parameter; Deno's types ask for a BigInt. */
type WithNumbers<Call> = Call extends (...args: infer Args) => infer Result ? (
    ...args: { [Index in keyof Args]: Args[Index] extends bigint ? number : Args[Index] }
  ) => Result
  : never;

/** Calls to a library's symbols, which take numbers only. */
export type Calls<Symbols extends Deno.ForeignLibraryInterface> = {
  [Name in keyof Deno.DynamicLibrary<Symbols>["symbols"]]: WithNumbers<
    Deno.DynamicLibrary<Symbols>["symbols"][Name]
  >;
};

/**
 * Opens a library for the named symbols; each file of this folder asks for what it calls. 64-bit
 * parameters take numbers, so that no BigInt is made on the way, and every number is checked on its
 * way (see `checked_calls.ts`). Throws when the library or a symbol is missing.
 *
 * @param soname Such as `libc.so.6`.
 */
export function openLibrary<const Symbols extends Deno.ForeignLibraryInterface>(
  soname: string,
  symbols: Symbols,
): Calls<Symbols> {
  const raw = Deno.dlopen(soname, symbols).symbols;
  const signatures = symbols as Record<string, Deno.ForeignFunction>;
  return checkedCalls(signatures, raw as Parameters<typeof checkedCalls>[1]) as Calls<Symbols>;
}

/** Opens libc for the named symbols. */
export function openLibc<const Symbols extends Deno.ForeignLibraryInterface>(
  symbols: Symbols,
): Calls<Symbols> {
  return openLibrary("libc.so.6", symbols);
}

/** The address that a non-null pointer object stands for, as a number (addresses fit 53 bits). */
export function pointerAddress(pointer: Deno.PointerValue): number {
  return Number(Deno.UnsafePointer.value(pointer));
}

/**
 * The pointer object for an address. Calls that are made often take pointers, buffers and 32-bit
 * numbers: the runtime compiles those, while a 64-bit number makes it take the long way round.
 */
export function pointerTo(address: number): Deno.PointerObject {
  const pointer = Deno.UnsafePointer.create(BigInt(address));
  if (pointer === null) throw new TypeError("Cannot point to address 0");
  return pointer;
}

/** A view of `sizeBytes` bytes of memory at `address`; shares the memory, copies nothing. */
export function memoryAt(address: number, sizeBytes: number): ArrayBuffer {
  return Deno.UnsafePointerView.getArrayBuffer(pointerTo(address), sizeBytes);
}

/** A name as libc wants it: its bytes and a NUL. Throws when it holds a NUL itself. */
export function cString(text: string): Uint8Array<ArrayBuffer> {
  if (text.includes("\0")) {
    throw new TypeError(`Cannot use ${JSON.stringify(text)} as a path: it holds a NUL`);
  }
  const bytes = encodeName(text);
  const terminated = new Uint8Array(bytes.length + 1);
  terminated.set(bytes);
  return terminated;
}

/** The address of the first byte of a typed array. The caller keeps the array alive. */
export function addressOf(array: ArrayBufferView<ArrayBuffer>): number {
  return pointerAddress(Deno.UnsafePointer.of(array));
}
