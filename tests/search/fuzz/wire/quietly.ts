import process from "node:process";

/** Replaces a method while a call runs. */
function replaced(owner: object, method: string, by: (...args: unknown[]) => unknown): () => void {
  const original: unknown = Reflect.get(owner, method);
  Reflect.set(owner, method, by);
  return () => void Reflect.set(owner, method, original);
}

/** Runs a program's main function; what it prints is returned, and not printed. */
export async function quietly<T>(
  call: () => Promise<T>,
): Promise<{ readonly result: T; readonly printed: string }> {
  let printed = "";
  const take = (...args: unknown[]): boolean => {
    printed += `${args.join(" ")}\n`;
    return true;
  };
  const takeBytes = (bytes: unknown): number => {
    if (!(bytes instanceof Uint8Array)) throw new TypeError("Only bytes are written");
    printed += new TextDecoder().decode(bytes);
    return bytes.length;
  };
  const undo = [
    replaced(console, "log", take),
    replaced(console, "error", take),
    replaced(process.stdout, "write", take),
    replaced(process.stderr, "write", take),
    replaced(Deno.stdout, "writeSync", takeBytes),
    replaced(Deno.stderr, "writeSync", takeBytes),
  ];
  try {
    return { result: await call(), printed };
  } finally {
    for (const each of undo.reverse()) each();
  }
}
