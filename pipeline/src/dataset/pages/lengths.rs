//! How long the values of a page are, where their lengths stand before them:
//! `DELTA_LENGTH_BYTE_ARRAY`, and `DELTA_BYTE_ARRAY`, in which a value leaves out what it shares
//! with the one before, so that few bytes can stand for very many.
use parquet::basic::Encoding;
use parquet::column::page::Page;

/// The lengths are not taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(super) enum LengthError {
    /// So many bytes, or more, are too many.
    #[error("the values take {0} bytes")]
    Larger(u64),
    /// They make no sense.
    #[error("the lengths of its values cannot be read: {0}")]
    Damaged(&'static str),
}

/// What of a page comes after the levels; `None` where those leave the page.
pub(super) fn values(page: &Page, max_rep_level: i16, max_def_level: i16) -> Option<&[u8]> {
    match page {
        Page::DataPage { buf, .. } => {
            let mut rest = &buf[..];
            for _ in [max_rep_level, max_def_level]
                .iter()
                .filter(|most| **most > 0)
            {
                let (length, after) = rest.split_first_chunk()?;
                rest = after.get(u32::from_le_bytes(*length) as usize..)?;
            }
            Some(rest)
        }
        Page::DataPageV2 {
            buf,
            rep_levels_byte_len,
            def_levels_byte_len,
            ..
        } => buf.get(*rep_levels_byte_len as usize + *def_levels_byte_len as usize..),
        Page::DictionaryPage { .. } => None,
    }
}

/// Bytes of all values; an error where they are more than `room`, or where there are more than
/// `most` values.
pub(super) fn total(
    values: &[u8],
    encoding: Encoding,
    most: u64,
    room: u64,
) -> Result<u64, LengthError> {
    let lists = match encoding {
        // What is shared, and what is not.
        Encoding::DELTA_BYTE_ARRAY => 2,
        Encoding::DELTA_LENGTH_BYTE_ARRAY => 1,
        _ => return Ok(0),
    };
    let (mut rest, mut sum) = (values, 0u64);
    for _ in 0..lists {
        rest = each(rest, most, |length| {
            let length = u64::try_from(length)
                .map_err(|_| LengthError::Damaged("one of them is negative"))?;
            sum = sum.saturating_add(length);
            if sum > room {
                return Err(LengthError::Larger(sum));
            }
            Ok(())
        })?;
    }
    Ok(sum)
}

/// Calls `take` with each number of a list in `DELTA_BINARY_PACKED`; returns what comes after the
/// list.
fn each(
    bytes: &[u8],
    most: u64,
    mut take: impl FnMut(i64) -> Result<(), LengthError>,
) -> Result<&[u8], LengthError> {
    let ends = LengthError::Damaged("the page ends before");
    let mut rest = bytes;
    let block = unsigned(&mut rest).ok_or(ends)?;
    let minis = unsigned(&mut rest).ok_or(ends)?;
    let count = unsigned(&mut rest).ok_or(ends)?;
    let first = unsigned(&mut rest).ok_or(ends)?;
    if count > most {
        let problem = "they are more than the page claims values";
        return Err(LengthError::Damaged(problem));
    }
    if minis == 0 || block % minis != 0 || block / minis % 8 != 0 || block == 0 {
        return Err(LengthError::Damaged("their blocks have an impossible size"));
    }
    let per_mini = block / minis;
    let mut value = signed(first);
    let mut left = count;
    if left > 0 {
        take(value)?;
        left -= 1;
    }
    while left > 0 {
        let least = signed(unsigned(&mut rest).ok_or(ends)?);
        let minis = usize::try_from(minis).map_err(|_| ends)?;
        let (widths, after) = rest.split_at_checked(minis).ok_or(ends)?;
        rest = after;
        for &width in widths {
            if left == 0 {
                break;
            }
            if width > 64 {
                return Err(LengthError::Damaged("they are wider than 64 bits"));
            }
            let here = left.min(per_mini);
            for i in 0..here {
                let delta = bits(rest, i * u64::from(width), width).ok_or(ends)?;
                value = value.wrapping_add(least).wrapping_add(delta.cast_signed());
                // The reader computes with 32 bits.
                take(i64::from(value as i32))?;
            }
            left -= here;
            let length = (u128::from(per_mini) * u128::from(width) / 8).min(rest.len() as u128);
            rest = &rest[length as usize..];
        }
    }
    Ok(rest)
}

/// A number of `width` bits, at most 64, `at` bits from the start, the lowest first.
fn bits(bytes: &[u8], at: u64, width: u8) -> Option<u64> {
    let start = usize::try_from(at / 8).ok()?;
    let end = usize::try_from((at + u64::from(width)).div_ceil(8)).ok()?;
    let mut value = 0u128;
    for (i, byte) in bytes.get(start..end)?.iter().enumerate() {
        value |= u128::from(*byte) << (8 * i);
    }
    let mask = (1u128 << width) - 1;
    Some((value >> (at % 8) & mask) as u64)
}

fn unsigned(rest: &mut &[u8]) -> Option<u64> {
    let mut value = 0;
    for shift in (0..64).step_by(7) {
        let (byte, after) = rest.split_first()?;
        *rest = after;
        value |= u64::from(byte & 0x7f) << shift;
        if byte & 0x80 == 0 {
            return Some(value);
        }
    }
    None
}

fn signed(zigzag: u64) -> i64 {
    (zigzag >> 1).cast_signed() ^ -(zigzag & 1).cast_signed()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn list(bytes: &[u8], most: u64) -> Result<(Vec<i64>, usize), LengthError> {
        let mut numbers = Vec::new();
        let rest = each(bytes, most, |number| {
            numbers.push(number);
            Ok(())
        })?;
        Ok((numbers, rest.len()))
    }

    /// The example of the format's description: 7, 5, 3, 1, 2, 3, 4, 5, in one block of 128 with 4
    /// miniblocks.
    #[test]
    fn the_numbers_of_a_list() {
        let mut bytes = vec![128, 1, 4, 8, 14, 3, 2, 0, 0, 0];
        let deltas = [0u64, 0, 0, 3, 3, 3, 3];
        let packed = deltas
            .iter()
            .enumerate()
            .fold(0, |all, (i, delta)| all | delta << (2 * i));
        bytes.extend_from_slice(&packed.to_le_bytes());
        bytes.extend_from_slice(b"rest");
        assert_eq!(
            list(&bytes, 8).unwrap(),
            (vec![7, 5, 3, 1, 2, 3, 4, 5], b"rest".len())
        );
        assert!(matches!(list(&bytes, 7), Err(LengthError::Damaged(_))));
        for end in 0..12 {
            assert!(list(&bytes[..end], 8).is_err(), "{end}");
        }
    }

    #[test]
    fn few_bytes_for_very_many_numbers_cost_nothing() {
        // A block of 2^60 numbers, each equal to the one before.
        let block = [0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x10];
        let mut bytes = block.to_vec();
        bytes.push(1);
        bytes.extend_from_slice(&block);
        bytes.extend_from_slice(&[2, 0, 0]);
        assert!(matches!(list(&bytes, 1000), Err(LengthError::Damaged(_))));
        let total_of = |most| total(&bytes, Encoding::DELTA_LENGTH_BYTE_ARRAY, most, 100);
        assert_eq!(total_of(u64::MAX), Err(LengthError::Larger(101)));
    }

    #[test]
    fn any_bytes_are_read_or_refused() {
        let mut state = 1u64;
        for _ in 0..100_000 {
            let bytes: Vec<u8> = (0..24)
                .map(|_| {
                    state = state
                        .wrapping_mul(6_364_136_223_846_793_005)
                        .wrapping_add(1);
                    (state >> 56) as u8
                })
                .collect();
            let _ = total(&bytes, Encoding::DELTA_BYTE_ARRAY, 1000, 1 << 20);
        }
    }
}
