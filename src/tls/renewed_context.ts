import { messageOf } from "../../ffi/errno.ts";
import type { TlsContext } from "../../ffi/tls_context.ts";
import { serverContext, serverFiles, type ServerTls } from "./tls.ts";

/** When files were changed, and their sizes, as text. A missing file is part of it. */
function stateOf(paths: readonly string[]): string {
  return paths.map((path) => {
    try {
      const { mtime, size, ino } = Deno.statSync(path);
      return `${mtime?.getTime()} ${size} ${ino}`;
    } catch {
      return "missing";
    }
  }).join();
}

/** What the connections of a server have in common, made again when certificates were renewed. */
export class RenewedContext {
  readonly #settings: ServerTls;
  readonly #files: readonly string[];
  readonly #note: (what: string) => void;
  #context: TlsContext;
  #state: string;

  /**
   * @param note Told of certificates that were renewed, and of those that cannot be used.
   * @throws {SystemError} As `serverContext` does.
   */
  constructor(settings: ServerTls, note: (what: string) => void) {
    this.#settings = settings;
    this.#files = serverFiles(settings);
    this.#note = note;
    this.#state = stateOf(this.#files);
    this.#context = serverContext(settings);
  }

  /** For the next connection. Certificates that cannot be used leave the earlier ones in use. */
  current(): TlsContext {
    const state = stateOf(this.#files);
    if (state === this.#state) return this.#context;
    this.#state = state;
    try {
      const renewed = serverContext(this.#settings);
      // Connections that were made with it keep what they need of it.
      this.#context.close();
      this.#context = renewed;
      this.#note("uses the renewed certificates");
    } catch (error) {
      this.#note(`goes on with the earlier certificates: ${messageOf(error)}`);
    }
    return this.#context;
  }

  close(): void {
    this.#context.close();
  }
}
