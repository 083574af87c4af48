/** A sample as it is drawn; see `pointOf` in `../history.ts`. */
export type Point = readonly (number | null)[];

/** What a stream sends once. */
export interface FirstMessage {
  readonly points: readonly Point[];
  /** Columns of the heat map; only of a disk. */
  readonly columns?: readonly (readonly number[])[];
}

/** What a stream sends after each sample; see `../live_streams.ts`. */
export interface NextMessage {
  readonly point?: Point;
  readonly column?: readonly number[];
  /** Figures beside the charts. */
  readonly now: Readonly<Record<string, string>>;
  readonly problem: string | null;
  /** Of the list: disks, the texts of their rows, and the line of the last minute. */
  readonly rows?: readonly (readonly [string, Readonly<Record<string, string>>, string])[];
  /** Of a disk. Lines are null when its tapdisk does not say, and left out before it was asked. */
  readonly texts?: Readonly<Record<string, string>>;
  readonly requests?: readonly string[] | null;
  /** What it waits for, a line each. */
  readonly findings?: readonly string[] | null;
  readonly events?: readonly (readonly [time: string, text: string, isProblem: boolean])[];
  /** Changes when the disk gets another chain. */
  readonly chain?: string;
}
