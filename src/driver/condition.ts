/** A server that an image is on, as its driver knows it. Times are milliseconds before now. */
export interface ServerCondition {
  readonly kind: "server";
  /** `type:path` of the image. */
  readonly image: string;
  /** How long there has been no connection; null while there is one. */
  readonly lostMs: number | null;
  /** Why it was lost, or could not be made again; empty without. */
  readonly why: string;
  /** In how long the next attempt is made; null while one is under way, or there is a connection. */
  readonly nextTryMs: number | null;
  /** Requests that it has, how long the oldest one has been there, and how long they took of late. */
  readonly asked: number;
  readonly oldestMs: number;
  readonly meanMs: number;
}

/** A share of a rate that a disk writes at. */
export interface ShareCondition {
  readonly kind: "share";
  /** The socket of the bridge that grants it. */
  readonly bridge: string;
  readonly isConnected: boolean;
  /** Requests that wait for it. */
  readonly waiting: number;
}

/** What an image depends on besides the disks of this machine, and how that is just now. */
export type ImageCondition = ServerCondition | ShareCondition;
