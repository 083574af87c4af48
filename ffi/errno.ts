/**
 * Error numbers of Linux, their names and texts, and the error that carries them.
 *
 * @module
 */
import { memoryAt, openLibcLater, pointerAddress } from "./libc.ts";

/** Error numbers by name (asm-generic/errno-base.h, asm-generic/errno.h). */
export const Errno = {
  EPERM: 1,
  ENOENT: 2,
  ESRCH: 3,
  EINTR: 4,
  EIO: 5,
  ENXIO: 6,
  E2BIG: 7,
  EBADF: 9,
  ECHILD: 10,
  EAGAIN: 11,
  ENOMEM: 12,
  EACCES: 13,
  EFAULT: 14,
  EBUSY: 16,
  EEXIST: 17,
  EXDEV: 18,
  ENODEV: 19,
  ENOTDIR: 20,
  EISDIR: 21,
  EINVAL: 22,
  ENFILE: 23,
  EMFILE: 24,
  ENOTTY: 25,
  ETXTBSY: 26,
  EFBIG: 27,
  ENOSPC: 28,
  ESPIPE: 29,
  EROFS: 30,
  EMLINK: 31,
  EPIPE: 32,
  EDOM: 33,
  ERANGE: 34,
  EDEADLK: 35,
  ENAMETOOLONG: 36,
  ENOLCK: 37,
  ENOSYS: 38,
  ENOTEMPTY: 39,
  ELOOP: 40,
  ENODATA: 61,
  ETIME: 62,
  ENOLINK: 67,
  EPROTO: 71,
  EBADMSG: 74,
  EOVERFLOW: 75,
  EILSEQ: 84,
  EUSERS: 87,
  ENOTSOCK: 88,
  EMSGSIZE: 90,
  EPROTONOSUPPORT: 93,
  EOPNOTSUPP: 95,
  EAFNOSUPPORT: 97,
  EADDRINUSE: 98,
  EADDRNOTAVAIL: 99,
  ENETUNREACH: 101,
  ECONNABORTED: 103,
  ECONNRESET: 104,
  ENOBUFS: 105,
  ENOTCONN: 107,
  ESHUTDOWN: 108,
  ETIMEDOUT: 110,
  ECONNREFUSED: 111,
  EHOSTDOWN: 112,
  EHOSTUNREACH: 113,
  EALREADY: 114,
  EINPROGRESS: 115,
  ESTALE: 116,
  EREMOTEIO: 121,
  EDQUOT: 122,
  ENOMEDIUM: 123,
  EMEDIUMTYPE: 124,
  ECANCELED: 125,
  ENOKEY: 126,
} as const;

const libc = openLibcLater({
  // int *__errno_location(void)
  __errno_location: { parameters: [], result: "pointer" },
  // char *strerror(int errnum)
  strerror: { parameters: ["i32"], result: "pointer" },
});

// errno has one address for the life of a thread: a view of it costs no call.
const errnoCell = new Int32Array(memoryAt(pointerAddress(libc.__errno_location()), 4));

const namesByNumber = new Map<number, string>(
  Object.entries(Errno).map(([name, number]) => [number, name]),
);

/** `errno` after the last libc call of this thread. Read it right after the call. */
export function lastErrno(): number {
  return errnoCell[0];
}

/** The symbolic name of an error number, such as `ENOENT`; `errno 4095` for an unknown one. */
export function errnoName(errno: number): string {
  return namesByNumber.get(errno) ?? `errno ${errno}`;
}

/** libc's text for an error number, such as `No such file or directory`. */
export function errnoMessage(errno: number): string {
  const text = libc.strerror(errno);
  return text === null ? "Unknown error" : Deno.UnsafePointerView.getCString(text);
}

/** Details of an error. */
export interface ErrorDetails {
  /** The file, device or address that the error concerns. */
  readonly file?: string;
  /** What the user can do, without a full stop. */
  readonly hint?: string;
  /** The error that caused this one. */
  readonly cause?: unknown;
  /** The whole message, for errors to which libc's text for the number adds nothing. */
  readonly message?: string;
}

/** The one error class of the project: what failed, on which file, and the error number. */
export class SystemError extends Error {
  /** Name of the class. */
  override readonly name: string = "SystemError";
  /** The positive error number. */
  readonly errno: number;
  /** Its symbolic name, such as `ENOENT`. */
  readonly code: string;
  /** The file, device or address that the error concerns, or null. */
  readonly file: string | null;
  /** What the user can do, or null. */
  readonly hint: string | null;

  /**
   * Makes an error whose message says what failed and why.
   *
   * @param errno A positive error number.
   * @param what What failed and on which file, such as `Cannot open disk.vhd`, without a full stop.
   */
  constructor(errno: number, what: string, details: ErrorDetails = {}) {
    const { file = null, hint = null, cause } = details;
    const text = details.message ?? `${what}: ${errnoMessage(errno)} (${errnoName(errno)})`;
    super(hint === null ? text : `${text}; ${hint}`, { cause });
    this.errno = errno;
    this.code = errnoName(errno);
    this.file = file;
    this.hint = hint;
  }
}

/** The number of an error: its own, the one that a runtime's error stands for, or EIO. */
export function errnoOf(error: unknown): number {
  return error instanceof Error ? numberIn(error) ?? Errno.EIO : Errno.EIO;
}

/** The message of an error, or the text of anything else that was thrown. */
export function messageOf(error: unknown): string {
  return error instanceof Error ? error.message : String(error);
}

/**
 * Converts an error to a `SystemError`; returns a `SystemError` unchanged.
 *
 * @param what As for the constructor of `SystemError`.
 */
export function systemError(error: unknown, what: string): SystemError {
  if (error instanceof SystemError) return error;
  const errno = error instanceof Error ? numberIn(error) : undefined;
  if (errno !== undefined) return new SystemError(errno, what, { cause: error });
  const message = `${what}: ${messageOf(error)}`;
  return new SystemError(Errno.EIO, what, { cause: error, message });
}

function numberIn(error: Error): number | undefined {
  if ("errno" in error && typeof error.errno === "number" && error.errno > 0) return error.errno;
  if (error instanceof Deno.errors.NotFound) return Errno.ENOENT;
  if (error instanceof Deno.errors.PermissionDenied) return Errno.EACCES;
  if (error instanceof Deno.errors.AlreadyExists) return Errno.EEXIST;
  if (error instanceof Deno.errors.NotADirectory) return Errno.ENOTDIR;
  if (error instanceof Deno.errors.IsADirectory) return Errno.EISDIR;
  const number = /\(os error (\d+)\)/.exec(error.message)?.[1];
  return number === undefined ? undefined : Number(number);
}

/**
 * The callback of an operation off the data path. It is called once, with null or with the error.
 */
export type Done = (error: SystemError | null) => void;

/** The same for an operation with a result; exactly one of the two arguments is null. */
export type DoneWith<Value> = (
  ...end: [error: null, value: Value] | [error: SystemError, value: null]
) => void;
