import { errnoOf, messageOf } from "../../../ffi/errno.ts";
import type { Secret } from "../../../ffi/secret.ts";
import { encodeError } from "../protocol/answers.ts";
import type { ControlConnection } from "./control_connection.ts";
import { messageCookie } from "../protocol/message.ts";

/** How requests of one message type are carried out. */
export interface Command {
  /**
   * Whether the command changes something. For each minor, one exclusive command runs at a time, in
   * the order in which they came. The others run at once and answer before they return.
   */
  readonly exclusive: boolean;
  /**
   * Of an exclusive command: it cancels the cancellable commands of its minor, those that came before
   * it and those that come until it has ended.
   */
  readonly preempts?: boolean;
  /** Of an exclusive command: it can be cancelled while it waits or runs. */
  readonly cancellable?: boolean;
  /** Of an exclusive command: called as soon as the request comes, before its turn. */
  announced?(request: Uint8Array): void;
  /**
   * Carries out a request, and answers once, now or later. An error that it throws becomes the
   * answer.
   *
   * @param request The message with its trailer.
   * @param key The key that came behind an `open`, else null. The command releases it.
   * @param connection Where the request came from; null when it did not come over the socket.
   * @returns A function that cancels the command, if that can be done; the answer then follows soon.
   * It is called when the peer hangs up before the answer, or for a command that preempts.
   */
  run(
    request: Uint8Array<ArrayBuffer>,
    answer: (reply: Uint8Array<ArrayBuffer>) => void,
    key: Secret | null,
    connection: ControlConnection | null,
  ): void | (() => void);
}

/** The commands by message type. */
export type CommandTable = ReadonlyMap<number, Command>;

/** The answer to a request that failed. */
export function errorReply(
  request: Uint8Array,
  error: unknown,
): Uint8Array<ArrayBuffer> {
  const reason = { error: errnoOf(error), message: messageOf(error) };
  return encodeError(messageCookie(request), reason);
}
