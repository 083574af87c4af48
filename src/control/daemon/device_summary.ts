/** A device in the list of a tapdisk. */
export interface DeviceSummary {
  readonly minor: number;
  /** A union of TD_VBD_* bits. */
  readonly state: number;
  /** `type:/path`; empty without an image. */
  readonly name: string;
}
