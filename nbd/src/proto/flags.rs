//! The flag and number spaces of the protocol, as plain constants.

/// Handshake flag of the server: fixed newstyle.
pub const HANDSHAKE_FIXED_NEWSTYLE: u16 = 1 << 0;
/// Handshake flag of the server: can leave out the zeroes after EXPORT_NAME.
pub const HANDSHAKE_NO_ZEROES: u16 = 1 << 1;
/// Client flag: fixed newstyle.
pub const CLIENT_FIXED_NEWSTYLE: u32 = 1 << 0;
/// Client flag: leave out the zeroes after EXPORT_NAME.
pub const CLIENT_NO_ZEROES: u32 = 1 << 1;

/// Transmission flag: the other flags are valid.
pub const HAS_FLAGS: u16 = 1 << 0;
/// Transmission flag: the export is read-only.
pub const READ_ONLY: u16 = 1 << 1;
/// Transmission flag: FLUSH is supported.
pub const SEND_FLUSH: u16 = 1 << 2;
/// Transmission flag: FUA is supported.
pub const SEND_FUA: u16 = 1 << 3;
/// Transmission flag: seeking costs time.
pub const ROTATIONAL: u16 = 1 << 4;
/// Transmission flag: TRIM is supported.
pub const SEND_TRIM: u16 = 1 << 5;
/// Transmission flag: WRITE_ZEROES is supported.
pub const SEND_WRITE_ZEROES: u16 = 1 << 6;
/// Transmission flag: the DF flag of READ is supported.
pub const SEND_DF: u16 = 1 << 7;
/// Transmission flag: several connections see each other's flushed writes.
pub const CAN_MULTI_CONN: u16 = 1 << 8;
/// Transmission flag: CACHE is supported.
pub const SEND_CACHE: u16 = 1 << 10;
/// Transmission flag: FAST_ZERO is supported.
pub const SEND_FAST_ZERO: u16 = 1 << 11;
/// Transmission flag: BLOCK_STATUS takes a payload that selects contexts.
pub const BLOCK_STATUS_PAYLOAD: u16 = 1 << 12;

/// Command flag: durable before the reply.
pub const CMD_FUA: u16 = 1 << 0;
/// Command flag of WRITE_ZEROES: leave no hole.
pub const CMD_NO_HOLE: u16 = 1 << 1;
/// Command flag of READ: one content chunk only.
pub const CMD_DF: u16 = 1 << 2;
/// Command flag of BLOCK_STATUS: one extent only.
pub const CMD_REQ_ONE: u16 = 1 << 3;
/// Command flag of WRITE_ZEROES: fail rather than be slow.
pub const CMD_FAST_ZERO: u16 = 1 << 4;
/// Command flag with extended headers: the length is that of a payload.
pub const CMD_PAYLOAD_LEN: u16 = 1 << 5;

/// Command READ.
pub const CMD_READ: u16 = 0;
/// Command WRITE.
pub const CMD_WRITE: u16 = 1;
/// Command DISC.
pub const CMD_DISC: u16 = 2;
/// Command FLUSH.
pub const CMD_FLUSH: u16 = 3;
/// Command TRIM.
pub const CMD_TRIM: u16 = 4;
/// Command CACHE.
pub const CMD_CACHE: u16 = 5;
/// Command WRITE_ZEROES.
pub const CMD_WRITE_ZEROES: u16 = 6;
/// Command BLOCK_STATUS.
pub const CMD_BLOCK_STATUS: u16 = 7;

/// Option EXPORT_NAME.
pub const OPT_EXPORT_NAME: u32 = 1;
/// Option ABORT.
pub const OPT_ABORT: u32 = 2;
/// Option LIST.
pub const OPT_LIST: u32 = 3;
/// Option STARTTLS.
pub const OPT_STARTTLS: u32 = 5;
/// Option INFO.
pub const OPT_INFO: u32 = 6;
/// Option GO.
pub const OPT_GO: u32 = 7;
/// Option STRUCTURED_REPLY.
pub const OPT_STRUCTURED_REPLY: u32 = 8;
/// Option LIST_META_CONTEXT.
pub const OPT_LIST_META_CONTEXT: u32 = 9;
/// Option SET_META_CONTEXT.
pub const OPT_SET_META_CONTEXT: u32 = 10;
/// Option EXTENDED_HEADERS.
pub const OPT_EXTENDED_HEADERS: u32 = 11;

/// Option reply: done.
pub const REP_ACK: u32 = 1;
/// Option reply: an export.
pub const REP_SERVER: u32 = 2;
/// Option reply: information about an export.
pub const REP_INFO: u32 = 3;
/// Option reply: a metadata context.
pub const REP_META_CONTEXT: u32 = 4;
/// Set in each option reply that is an error.
pub const REP_ERROR: u32 = 1 << 31;
/// Option error: unknown option.
pub const REP_ERR_UNSUP: u32 = REP_ERROR | 1;
/// Option error: forbidden here.
pub const REP_ERR_POLICY: u32 = REP_ERROR | 2;
/// Option error: malformed.
pub const REP_ERR_INVALID: u32 = REP_ERROR | 3;
/// Option error: no such export.
pub const REP_ERR_UNKNOWN: u32 = REP_ERROR | 6;
/// Option error: the server is shutting down.
pub const REP_ERR_SHUTDOWN: u32 = REP_ERROR | 7;
/// Option error: the client must ask for block sizes.
pub const REP_ERR_BLOCK_SIZE_REQD: u32 = REP_ERROR | 8;
/// Option error: too large.
pub const REP_ERR_TOO_BIG: u32 = REP_ERROR | 9;
/// Option error: extended headers are on, structured replies cannot be.
pub const REP_ERR_EXT_HEADER_REQD: u32 = REP_ERROR | 10;

/// Information: size and transmission flags.
pub const INFO_EXPORT: u16 = 0;
/// Information: canonical name.
pub const INFO_NAME: u16 = 1;
/// Information: description.
pub const INFO_DESCRIPTION: u16 = 2;
/// Information: block sizes.
pub const INFO_BLOCK_SIZE: u16 = 3;

/// Chunk flag: the last chunk of a reply.
pub const CHUNK_DONE: u16 = 1 << 0;
/// Chunk type: nothing.
pub const CHUNK_NONE: u16 = 0;
/// Chunk type: data at an offset.
pub const CHUNK_OFFSET_DATA: u16 = 1;
/// Chunk type: a hole at an offset.
pub const CHUNK_OFFSET_HOLE: u16 = 2;
/// Chunk type: block status, 32-bit lengths.
pub const CHUNK_BLOCK_STATUS: u16 = 5;
/// Chunk type: block status, 64-bit lengths.
pub const CHUNK_BLOCK_STATUS_EXT: u16 = 6;
/// Set in each chunk type that is an error.
pub const CHUNK_IS_ERROR: u16 = 1 << 15;
/// Chunk type: an error.
pub const CHUNK_ERROR: u16 = CHUNK_IS_ERROR | 1;
/// Chunk type: an error at an offset.
pub const CHUNK_ERROR_OFFSET: u16 = CHUNK_IS_ERROR | 2;
