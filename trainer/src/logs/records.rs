//! TensorBoard's event files, as far as scalars go: records of TensorFlow's format, each an `Event`
//! in protobuf's encoding.
//!
//! A record is its length, a checksum of the length, the bytes, and a checksum of the bytes. The
//! messages (`tensorflow/core/util/event.proto`, `tensorflow/core/framework/summary.proto`) with
//! the fields that are used here:
//!
//! ```text
//! Event   { double wall_time = 1; int64 step = 2; string file_version = 3; Summary summary = 5; }
//! Summary { repeated Value value = 1; }
//! Value   { string tag = 1; float simple_value = 2; }
//! ```

/// The first record of every file: which version of `Event` follows.
pub(crate) fn push_version(records: &mut Vec<u8>, wall_time: f64) {
    let mut event = Vec::new();
    push_double(&mut event, 1, wall_time);
    push_bytes(&mut event, 3, b"brain.Event:2");
    push_record(records, &event);
}

/// One point of the curve `tag`.
pub(crate) fn push_scalar(
    records: &mut Vec<u8>,
    wall_time: f64,
    step: u64,
    tag: &str,
    scalar: f32,
) {
    let mut value = Vec::new();
    push_bytes(&mut value, 1, tag.as_bytes());
    push_float(&mut value, 2, scalar);
    let mut summary = Vec::new();
    push_bytes(&mut summary, 1, &value);
    let mut event = Vec::new();
    push_double(&mut event, 1, wall_time);
    push_varint(&mut event, 2, step);
    push_bytes(&mut event, 5, &summary);
    push_record(records, &event);
}

/// How the bytes of a field lie in a message (protobuf's wire types).
#[derive(Clone, Copy)]
enum Wire {
    Varint = 0,
    Eight = 1,
    Counted = 2,
    Four = 5,
}

fn push_key(message: &mut Vec<u8>, field: u64, wire: Wire) {
    push_base128(message, field << 3 | wire as u64);
}

fn push_double(message: &mut Vec<u8>, field: u64, value: f64) {
    push_key(message, field, Wire::Eight);
    message.extend_from_slice(&value.to_le_bytes());
}

fn push_float(message: &mut Vec<u8>, field: u64, value: f32) {
    push_key(message, field, Wire::Four);
    message.extend_from_slice(&value.to_le_bytes());
}

fn push_varint(message: &mut Vec<u8>, field: u64, value: u64) {
    push_key(message, field, Wire::Varint);
    push_base128(message, value);
}

fn push_bytes(message: &mut Vec<u8>, field: u64, bytes: &[u8]) {
    push_key(message, field, Wire::Counted);
    push_base128(message, bytes.len() as u64);
    message.extend_from_slice(bytes);
}

/// Seven bits a byte, the lowest first; the eighth says that more follow.
fn push_base128(message: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        message.push(value as u8 | 0x80);
        value >>= 7;
    }
    message.push(value as u8);
}

fn push_record(records: &mut Vec<u8>, bytes: &[u8]) {
    let length = (bytes.len() as u64).to_le_bytes();
    records.extend_from_slice(&length);
    records.extend_from_slice(&masked_crc(&length).to_le_bytes());
    records.extend_from_slice(bytes);
    records.extend_from_slice(&masked_crc(bytes).to_le_bytes());
}

/// CRC-32C, rotated and shifted as TensorFlow does, so that a checksum of data that holds checksums
/// is a good one.
fn masked_crc(bytes: &[u8]) -> u32 {
    let crc = !bytes.iter().fold(!0, |crc, byte| {
        CRC_TABLE[usize::from(crc as u8 ^ byte)] ^ (crc >> 8)
    });
    crc.rotate_right(15).wrapping_add(0xa282_ead8)
}

/// Remainders of all bytes by Castagnoli's polynomial, its bits reversed.
const CRC_TABLE: [u32; 256] = {
    let mut table = [0; 256];
    let mut byte = 0;
    while byte < 256 {
        let mut crc = byte as u32;
        let mut bit = 0;
        while bit < 8 {
            crc = crc >> 1 ^ if crc & 1 == 1 { 0x82f6_3b78 } else { 0 };
            bit += 1;
        }
        table[byte] = crc;
        byte += 1;
    }
    table
};

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_checksum_is_the_published_one() {
        // RFC 3720, B.4: 32 bytes of zeros, and the check value of every catalogue.
        let unmasked = |bytes: &[u8]| masked_crc(bytes).wrapping_sub(0xa282_ead8).rotate_left(15);
        assert_eq!(unmasked(&[0; 32]), 0x8a91_36aa);
        assert_eq!(unmasked(b"123456789"), 0xe306_9283);
    }

    /// The bytes are those that TensorFlow's own writer makes of the same events (tensorboard
    /// 2.21).
    #[test]
    fn records_are_those_of_tensorflow() {
        let mut records = Vec::new();
        push_version(&mut records, 1.5);
        push_scalar(&mut records, 2.5, 300, "train/loss", -0.7);
        let hex = records
            .iter()
            .map(|byte| format!("{byte:02x}"))
            .collect::<String>();
        assert_eq!(hex, EXPECTED);
    }

    const EXPECTED: &str = "1800000000000000a37f4b22\
        09000000000000f83f1a0d627261696e2e4576656e743a322a28646c\
        2100000000000000017becf6\
        09000000000000044010ac022a130a110a0a747261696e2f6c6f737315333333bfb55935a9";
}
