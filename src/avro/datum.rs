//! The bytes of one binary datum, read from front to back. Trusts nothing.

/// Why bytes are not a datum of their schema. Names no value.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DecodeReason {
    /// The datum ends within a value.
    #[error("the payload ends too early")]
    EndsEarly,
    /// The datum is complete and bytes are left.
    #[error("{0} bytes are left over")]
    LeftOver(usize),
    /// A varint of more than 64 bits.
    #[error("a number is longer than 64 bits")]
    NumberTooLong,
    /// An `int` beyond 32 bits.
    #[error("an int is outside 32 bits")]
    IntOutOfRange,
    /// A length below zero.
    #[error("a length is negative")]
    NegativeLength,
    /// Text that is not UTF-8.
    #[error("text is not UTF-8")]
    NotUtf8,
    /// A boolean that is neither 0 nor 1.
    #[error("a boolean is neither 0 nor 1")]
    NotABoolean,
    /// An enum index without a symbol.
    #[error("an enum index is outside the schema's {symbols} symbols")]
    NoSuchSymbol {
        /// How many there are.
        symbols: usize,
    },
    /// A union index without a branch.
    #[error("a union index is outside the schema's {branches} branches")]
    NoSuchBranch {
        /// How many there are.
        branches: usize,
    },
    /// Values within values beyond any real event.
    #[error("values are nested deeper than {0} levels")]
    TooDeep(usize),
    /// More values, or more text, than a payload of this size can honestly hold.
    #[error("it unfolds to far more than its size allows")]
    TooLarge,
    /// A bitmap of the header is not well formed.
    #[error("{0}")]
    Bitmap(#[from] super::BitmapError),
}

/// What is left of a datum.
#[derive(Debug, Clone)]
pub(super) struct Datum<'d> {
    left: &'d [u8],
}

impl<'d> Datum<'d> {
    pub(super) fn new(bytes: &'d [u8]) -> Self {
        Self { left: bytes }
    }

    /// How many bytes are left.
    pub(super) fn len(&self) -> usize {
        self.left.len()
    }

    pub(super) fn take(&mut self, count: usize) -> Result<&'d [u8], DecodeReason> {
        let (taken, left) = self
            .left
            .split_at_checked(count)
            .ok_or(DecodeReason::EndsEarly)?;
        self.left = left;
        Ok(taken)
    }

    pub(super) fn array<const N: usize>(&mut self) -> Result<[u8; N], DecodeReason> {
        let (taken, left) = self
            .left
            .split_first_chunk()
            .ok_or(DecodeReason::EndsEarly)?;
        self.left = left;
        Ok(*taken)
    }

    /// Takes the next byte if it is this one.
    pub(super) fn take_if(&mut self, byte: u8) -> bool {
        match self.left {
            [first, left @ ..] if *first == byte => {
                self.left = left;
                true
            }
            _ => false,
        }
    }

    /// A zigzag varint of at most 64 bits.
    pub(super) fn long(&mut self) -> Result<i64, DecodeReason> {
        let mut value = 0_u64;
        for (i, &byte) in self.left.iter().take(10).enumerate() {
            if i == 9 && byte > 1 {
                return Err(DecodeReason::NumberTooLong);
            }
            value |= u64::from(byte & 0x7f) << (7 * i);
            if byte < 0x80 {
                self.left = &self.left[i + 1..];
                // Zigzag: the lowest bit is the sign.
                return Ok((value >> 1).cast_signed() ^ -(value & 1).cast_signed());
            }
        }
        Err(DecodeReason::EndsEarly)
    }

    pub(super) fn int(&mut self) -> Result<i32, DecodeReason> {
        i32::try_from(self.long()?).map_err(|_| DecodeReason::IntOutOfRange)
    }

    /// An index, as of an enum's symbols or a union's branches; `None` where it is none at all.
    pub(super) fn index(&mut self) -> Result<Option<usize>, DecodeReason> {
        Ok(usize::try_from(self.long()?).ok())
    }

    /// Bytes behind their length.
    pub(super) fn bytes(&mut self) -> Result<&'d [u8], DecodeReason> {
        let length = self.long()?;
        if length < 0 {
            return Err(DecodeReason::NegativeLength);
        }
        self.take(usize::try_from(length).map_err(|_| DecodeReason::EndsEarly)?)
    }

    pub(super) fn text(&mut self) -> Result<&'d str, DecodeReason> {
        std::str::from_utf8(self.bytes()?).map_err(|_| DecodeReason::NotUtf8)
    }

    /// Number of items in the next block of an array or a map; zero ends it. Not to be trusted: there
    /// may be fewer bytes left than items promised.
    pub(super) fn block(&mut self) -> Result<u64, DecodeReason> {
        let count = self.long()?;
        if count < 0 {
            // The block's size in bytes follows, for readers that would skip it.
            self.long()?;
        }
        Ok(count.unsigned_abs())
    }

    /// Takes a run of zero bytes of at most this length, and says how long it was.
    pub(super) fn take_zeros(&mut self, at_most: usize) -> usize {
        let window = &self.left[..at_most.min(self.left.len())];
        let mut zeros = 0;
        for chunk in window.chunks(16) {
            // Without an early exit within the chunk, so that it is one comparison.
            if chunk.iter().fold(0, |any, byte| any | byte) != 0 {
                zeros += chunk.iter().take_while(|byte| **byte == 0).count();
                break;
            }
            zeros += chunk.len();
        }
        self.left = &self.left[zeros..];
        zeros
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn varints_of_every_length_are_read_and_no_longer_ones() {
        for value in [0, -1, 1, 63, 64, -65, i64::MAX, i64::MIN] {
            let mut bytes = Vec::new();
            let mut zigzag = ((value << 1) ^ (value >> 63)).cast_unsigned();
            while zigzag >= 0x80 {
                bytes.push(zigzag as u8 | 0x80);
                zigzag >>= 7;
            }
            bytes.push(zigzag as u8);
            assert_eq!(Datum::new(&bytes).long(), Ok(value));
            bytes.pop();
            assert_eq!(Datum::new(&bytes).long(), Err(DecodeReason::EndsEarly));
        }
        assert_eq!(
            Datum::new(&[0xff; 11]).long(),
            Err(DecodeReason::NumberTooLong)
        );
        let overflow = [0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 2];
        assert_eq!(
            Datum::new(&overflow).long(),
            Err(DecodeReason::NumberTooLong)
        );
    }

    #[test]
    fn runs_of_zeros_end_at_the_first_other_byte_or_the_bound() {
        let mut bytes = vec![0; 40];
        bytes.push(2);
        for at_most in 0..60 {
            let mut datum = Datum::new(&bytes);
            assert_eq!(datum.take_zeros(at_most), at_most.min(40));
            assert_eq!(datum.len(), 41 - at_most.min(40));
        }
    }
}
