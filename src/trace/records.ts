/**
 * `src/trace`: what became of each request of a disk and when, recorded while somebody asks for it: the
 * records, the ring that holds them in tapdisk, and the files that tap-ctl makes of them.
 *
 * A record has 32 bytes in the byte order of the machine:
 *
 * | Field  | Where   | What                                                                      |
 * | ------ | ------- | ------------------------------------------------------------------------- |
 * | start  | f64 @0  | when it began, milliseconds of the loop's clock                           |
 * | place  | f64 @8  | its first sector; of a stage, sectors of the request that had ended then  |
 * | middle | f32 @16 | milliseconds from the start: until the request began, or the disk had it  |
 * | end    | f32 @20 | milliseconds from the start until the end                                 |
 * | count  | u24 @24 | sectors                                                                   |
 * | errno  | u8 @27  | 0, or a positive error number                                             |
 * | type   | u4 @28  | one of `RecordType`                                                       |
 * | kind   | u4 @28  | of a request and an operation what it does, of a stage which              |
 * | slot   | u8 @29  | the request's slot; `NO_SLOT` for none                                    |
 * | layer  | u16 @30 | of an operation the number of the image; of a request 1 if it has not ended |
 *
 * Between tapdisk and tap-ctl, records are in frames: u32 type (one of `FrameType`), u32 length, and so
 * many bytes.
 *
 * The folder must not read a clock, open files or sockets, or know devices and drivers.
 *
 * @module
 */

/** Bytes of a record. */
export const RECORD_BYTES = 32;
/** The slot of what belongs to no single request. */
export const NO_SLOT = 255;
/** The most sectors that a record can tell. */
export const MOST_COUNT = 0xff_ffff;
/** The highest number of an image; operations of further ones are told without their image. */
export const MOST_LAYERS = 0x3fff;

/** What a record is about. */
export const RecordType = {
  /** A request ended, or the trace did before it. */
  Request: 1,
  /** A request left a stage. */
  Stage: 2,
  /** A disk or server ended an operation. */
  Operation: 3,
  /** The answer to a request was handed over. */
  Reply: 4,
  /** Clients have waited for slots. */
  SlotWait: 5,
} as const;

/** What a request or an operation does: the numbers of `RequestKind` in `src/vbd`. */
export const TracedKind = {
  Read: 0,
  Write: 1,
  Flush: 2,
  Discard: 3,
  Zero: 4,
  Status: 5,
  Fill: 6,
} as const;

/** The stage of a write whose data is being received; the others are those of `Stage` in `src/vbd`. */
export const RECEIVING = 15;

/** What is in a frame. */
export const FrameType = {
  /** Records. */
  Records: 1,
  /** JSON: a list of pairs of the number and the name of an image. Numbers are not used again. */
  Layers: 2,
  /** JSON: a `TraceEnd`. It is the last frame. */
  End: 3,
} as const;

/** Bytes in front of a frame's content. */
export const FRAME_HEAD_BYTES = 8;

/** How a trace ended, as the last frame tells. */
export interface TraceEnd {
  /** Why it ended. */
  readonly why: string;
  /** Records that were not made, because the ring was full. */
  readonly lost: number;
}
