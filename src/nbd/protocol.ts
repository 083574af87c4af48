/**
 * `src/nbd` is what the NBD server (`src/frontend/nbd`) and the NBD client (`src/driver/nbd`)
 * share: the constants of the protocol, with the names of its specification (doc/proto.md of the
 * NBD project), and the encoding of fields. It must not do I/O, and must not know either of the
 * two.
 *
 * @module
 */

export const NBDMAGIC_HIGH = 0x4e42444d;
export const NBDMAGIC_LOW = 0x41474943;
export const IHAVEOPT_HIGH = 0x49484156;
export const IHAVEOPT_LOW = 0x454f5054;
export const OPTION_REPLY_MAGIC_HIGH = 0x0003e889;
export const OPTION_REPLY_MAGIC_LOW = 0x045565a9;
export const NBD_REQUEST_MAGIC = 0x25609513;
export const NBD_SIMPLE_REPLY_MAGIC = 0x67446698;
export const NBD_STRUCTURED_REPLY_MAGIC = 0x668e33ef;

/** The magic number of servers that know only the oldstyle negotiation. */
export const OLDSTYLE_MAGIC_HIGH = 0x00004202;
export const OLDSTYLE_MAGIC_LOW = 0x81861253;

export const NBD_FLAG_FIXED_NEWSTYLE = 1;
export const NBD_FLAG_NO_ZEROES = 2;

export const NBD_FLAG_HAS_FLAGS = 1;
export const NBD_FLAG_READ_ONLY = 2;
export const NBD_FLAG_SEND_FLUSH = 4;
export const NBD_FLAG_SEND_FUA = 8;
export const NBD_FLAG_SEND_TRIM = 32;
export const NBD_FLAG_SEND_WRITE_ZEROES = 64;
export const NBD_FLAG_SEND_DF = 128;
export const NBD_FLAG_CAN_MULTI_CONN = 256;

export const NBD_OPT_EXPORT_NAME = 1;
export const NBD_OPT_ABORT = 2;
export const NBD_OPT_LIST = 3;
export const NBD_OPT_STARTTLS = 5;
export const NBD_OPT_INFO = 6;
export const NBD_OPT_GO = 7;
export const NBD_OPT_STRUCTURED_REPLY = 8;
export const NBD_OPT_LIST_META_CONTEXT = 9;
export const NBD_OPT_SET_META_CONTEXT = 10;

export const NBD_REP_ACK = 1;
export const NBD_REP_SERVER = 2;
export const NBD_REP_INFO = 3;
export const NBD_REP_META_CONTEXT = 4;
export const NBD_REP_ERR_UNSUP = 0x80000001;
export const NBD_REP_ERR_POLICY = 0x80000002;
export const NBD_REP_ERR_INVALID = 0x80000003;
export const NBD_REP_ERR_TLS_REQD = 0x80000005;
export const NBD_REP_ERR_UNKNOWN = 0x80000006;
export const NBD_REP_ERR_SHUTDOWN = 0x80000007;
export const NBD_REP_ERR_BLOCK_SIZE_REQD = 0x80000008;
export const NBD_REP_ERR_TOO_BIG = 0x80000009;

export const NBD_INFO_EXPORT = 0;
export const NBD_INFO_NAME = 1;
export const NBD_INFO_BLOCK_SIZE = 3;

export const NBD_CMD_READ = 0;
export const NBD_CMD_WRITE = 1;
export const NBD_CMD_DISC = 2;
export const NBD_CMD_FLUSH = 3;
export const NBD_CMD_TRIM = 4;
export const NBD_CMD_WRITE_ZEROES = 6;
export const NBD_CMD_BLOCK_STATUS = 7;

export const NBD_CMD_FLAG_FUA = 1;
export const NBD_CMD_FLAG_NO_HOLE = 2;
export const NBD_CMD_FLAG_DF = 4;
export const NBD_CMD_FLAG_REQ_ONE = 8;

export const NBD_REPLY_FLAG_DONE = 1;
export const NBD_REPLY_TYPE_NONE = 0;
export const NBD_REPLY_TYPE_OFFSET_DATA = 1;
export const NBD_REPLY_TYPE_OFFSET_HOLE = 2;
export const NBD_REPLY_TYPE_BLOCK_STATUS = 5;
export const NBD_REPLY_TYPE_ERROR = 0x8001;

export const NBD_STATE_HOLE = 1;
export const NBD_STATE_ZERO = 2;

/** Bytes of a request's header. */
export const REQUEST_BYTES = 28;
/** Bytes of a simple reply. */
export const SIMPLE_REPLY_BYTES = 16;
/** Bytes of the header of a structured reply's chunk. */
export const CHUNK_HEADER_BYTES = 20;

/** Minimum block size: requests start and end at a multiple of it, bytes. */
export const MINIMUM_BLOCK_BYTES = 512;
/** Preferred block size, bytes. */
export const PREFERRED_BLOCK_BYTES = 4096;
/** Maximum payload, bytes. Clients that do not ask for block sizes may send this much. */
export const MAXIMUM_BLOCK_BYTES = 32 * 1024 * 1024;

/** The meta context of the disk's log of changed blocks. */
export const BLKTAP_CBT = "blktap:cbt";
/** The start of the names of meta contexts of qemu's bitmaps. */
export const QEMU_DIRTY_BITMAP = "qemu:dirty-bitmap:";
/** The meta context that tells which parts of a disk hold data, and its number in replies. */
export const BASE_ALLOCATION = "base:allocation";
export const BASE_ALLOCATION_ID = 1;
