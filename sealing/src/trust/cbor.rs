//! The part of deterministic CBOR (RFC 8949, 4.2.1) that trust objects are made of, read strictly.
//!
//! Unsigned and negative integers, byte and text strings, arrays, maps with unsigned labels, one tag. Definite
//! lengths, every length and integer in its shortest form, labels strictly ascending, nothing left over. So
//! each value has exactly one encoding, and a signed object cannot be respelled by whoever carries it. General
//! CBOR readers are laxer than that: they accept longer integers, unsorted and repeated labels.

/// Why bytes are not what was expected.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::trust) enum CborError {
    /// The bytes end inside an item, or a length reaches beyond them.
    Truncated,
    /// An integer or a length in a longer form than needed, or an indefinite length.
    NotShortest,
    /// An item of another kind.
    Kind,
    /// A label that is unknown, missing, repeated or out of order.
    Label,
    /// A number or a count outside its range.
    Range,
    /// A text string that is not UTF-8.
    Text,
    /// Bytes after the end.
    Trailing,
}

type Result<T> = std::result::Result<T, CborError>;

const UINT: u8 = 0;
const NEGATIVE: u8 = 1;
const BYTES: u8 = 2;
const TEXT: u8 = 3;
const ARRAY: u8 = 4;
const MAP: u8 = 5;
const TAG: u8 = 6;

/// Deepest nesting of a well-formed payload; ours reach 4. Bounds the recursion of [`well_formed`].
const MAX_DEPTH: usize = 8;

/// Reads items one after the other.
#[derive(Debug)]
pub(in crate::trust) struct Reader<'a> {
    rest: &'a [u8],
}

impl<'a> Reader<'a> {
    pub(in crate::trust) fn new(bytes: &'a [u8]) -> Reader<'a> {
        Reader { rest: bytes }
    }

    fn take(&mut self, len: u64) -> Result<&'a [u8]> {
        let len = usize::try_from(len).map_err(|_| CborError::Truncated)?;
        let (taken, rest) = self.rest.split_at_checked(len).ok_or(CborError::Truncated)?;
        self.rest = rest;
        Ok(taken)
    }

    fn any_head(&mut self) -> Result<(u8, u64)> {
        let first = self.take(1)?[0];
        let (major, info) = (first >> 5, first & 0x1f);
        let (argument, least) = match info {
            0..24 => (u64::from(info), 0),
            24..28 => {
                let width = 1 << (info - 24);
                let wide = self.take(width)?.iter().fold(0, |value, byte| value << 8 | u64::from(*byte));
                (wide, if width == 1 { 24 } else { 1 << (4 * width) })
            }
            _ => return Err(CborError::NotShortest),
        };
        if argument < least { Err(CborError::NotShortest) } else { Ok((major, argument)) }
    }

    fn head(&mut self, expected: u8) -> Result<u64> {
        // Compared before the argument is read: another kind is another kind, whatever its length.
        if self.rest.first().ok_or(CborError::Truncated)? >> 5 != expected {
            return Err(CborError::Kind);
        }
        Ok(self.any_head()?.1)
    }

    pub(in crate::trust) fn uint(&mut self) -> Result<u64> {
        self.head(UINT)
    }

    pub(in crate::trust) fn int(&mut self) -> Result<i64> {
        let (major, argument) = self.any_head()?;
        let argument = i64::try_from(argument).map_err(|_| CborError::Range)?;
        match major {
            UINT => Ok(argument),
            NEGATIVE => Ok(-1 - argument),
            _ => Err(CborError::Kind),
        }
    }

    pub(in crate::trust) fn bytes(&mut self) -> Result<&'a [u8]> {
        let len = self.head(BYTES)?;
        self.take(len)
    }

    pub(in crate::trust) fn bytes_of<const N: usize>(&mut self) -> Result<[u8; N]> {
        self.bytes()?.try_into().map_err(|_| CborError::Range)
    }

    pub(in crate::trust) fn text(&mut self) -> Result<&'a str> {
        let len = self.head(TEXT)?;
        std::str::from_utf8(self.take(len)?).map_err(|_| CborError::Text)
    }

    /// An array's head; the count is within `least..=most`.
    pub(in crate::trust) fn array(&mut self, least: usize, most: usize) -> Result<usize> {
        let count = usize::try_from(self.head(ARRAY)?).map_err(|_| CborError::Range)?;
        if (least..=most).contains(&count) { Ok(count) } else { Err(CborError::Range) }
    }

    pub(in crate::trust) fn tag(&mut self, expected: u64) -> Result<()> {
        if self.head(TAG)? == expected { Ok(()) } else { Err(CborError::Kind) }
    }

    /// A map's head; its fields are then asked for in ascending order.
    pub(in crate::trust) fn map(&mut self) -> Result<Fields<'_, 'a>> {
        let left = self.head(MAP)?;
        Ok(Fields { reader: self, left, peeked: None })
    }

    pub(in crate::trust) fn empty_map(&mut self) -> Result<()> {
        if self.head(MAP)? == 0 { Ok(()) } else { Err(CborError::Label) }
    }

    pub(in crate::trust) fn finish(self) -> Result<()> {
        if self.rest.is_empty() { Ok(()) } else { Err(CborError::Trailing) }
    }

    /// Passes over one item of any kind and checks its form.
    fn skip(&mut self, depth: usize) -> Result<()> {
        if depth == 0 {
            return Err(CborError::Range);
        }
        let (major, argument) = self.any_head()?;
        match major {
            UINT | NEGATIVE => Ok(()),
            BYTES => self.take(argument).map(|_| ()),
            TEXT => std::str::from_utf8(self.take(argument)?).map(|_| ()).map_err(|_| CborError::Text),
            ARRAY => (0..argument).try_for_each(|_| self.skip(depth - 1)),
            MAP => {
                let mut before: Option<&[u8]> = None;
                for _ in 0..argument {
                    let at_label = self.rest;
                    self.skip(depth - 1)?;
                    let label = &at_label[..at_label.len() - self.rest.len()];
                    if before.is_some_and(|before| before >= label) {
                        return Err(CborError::Label);
                    }
                    before = Some(label);
                    self.skip(depth - 1)?;
                }
                Ok(())
            }
            _ => Err(CborError::Kind),
        }
    }
}

/// Whether `bytes` are one item of deterministic CBOR, of whatever meaning.
pub(in crate::trust) fn well_formed(bytes: &[u8]) -> Result<()> {
    let mut reader = Reader::new(bytes);
    reader.skip(MAX_DEPTH)?;
    reader.finish()
}

/// The fields of a map, asked for by ascending label. A label that nobody asks for is an error at the next
/// question, and so is one that comes twice or too early.
#[derive(Debug)]
pub(in crate::trust) struct Fields<'r, 'a> {
    reader: &'r mut Reader<'a>,
    left: u64,
    peeked: Option<u64>,
}

impl<'a> Fields<'_, 'a> {
    pub(in crate::trust) fn optional(&mut self, label: u64) -> Result<Option<&mut Reader<'a>>> {
        if self.peeked.is_none() && self.left > 0 {
            self.peeked = Some(self.reader.uint()?);
            self.left -= 1;
        }
        if self.peeked != Some(label) {
            return Ok(None);
        }
        self.peeked = None;
        Ok(Some(self.reader))
    }

    pub(in crate::trust) fn required(&mut self, label: u64) -> Result<&mut Reader<'a>> {
        self.optional(label)?.ok_or(CborError::Label)
    }

    pub(in crate::trust) fn finish(self) -> Result<()> {
        if self.left == 0 && self.peeked.is_none() { Ok(()) } else { Err(CborError::Label) }
    }
}

/// Writes items one after the other, each in its one form. The caller writes labels in ascending order.
#[derive(Debug, Default)]
pub(in crate::trust) struct Writer(Vec<u8>);

impl Writer {
    fn head(&mut self, major: u8, argument: u64) -> &mut Writer {
        let major = major << 5;
        match argument {
            0..24 => self.0.push(major | argument as u8),
            24..0x100 => self.0.extend([major | 24, argument as u8]),
            0x100..0x1_0000 => {
                self.0.push(major | 25);
                self.0.extend((argument as u16).to_be_bytes());
            }
            0x1_0000..0x1_0000_0000 => {
                self.0.push(major | 26);
                self.0.extend((argument as u32).to_be_bytes());
            }
            _ => {
                self.0.push(major | 27);
                self.0.extend(argument.to_be_bytes());
            }
        }
        self
    }

    pub(in crate::trust) fn uint(&mut self, value: u64) -> &mut Writer {
        self.head(UINT, value)
    }

    pub(in crate::trust) fn int(&mut self, value: i64) -> &mut Writer {
        match u64::try_from(value) {
            Ok(value) => self.head(UINT, value),
            Err(_) => self.head(NEGATIVE, !value as u64),
        }
    }

    pub(in crate::trust) fn bytes(&mut self, value: &[u8]) -> &mut Writer {
        self.head(BYTES, value.len() as u64).0.extend_from_slice(value);
        self
    }

    pub(in crate::trust) fn text(&mut self, value: &str) -> &mut Writer {
        self.head(TEXT, value.len() as u64).0.extend_from_slice(value.as_bytes());
        self
    }

    pub(in crate::trust) fn array(&mut self, count: usize) -> &mut Writer {
        self.head(ARRAY, count as u64)
    }

    pub(in crate::trust) fn map(&mut self, count: usize) -> &mut Writer {
        self.head(MAP, count as u64)
    }

    pub(in crate::trust) fn tag(&mut self, tag: u64) -> &mut Writer {
        self.head(TAG, tag)
    }

    pub(in crate::trust) fn finish(self) -> Vec<u8> {
        self.0
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_longer_form_of_a_number_is_refused() {
        for bytes in [
            &[0x18, 0x17][..],
            &[0x19, 0x00, 0xff],
            &[0x1a, 0x00, 0x00, 0xff, 0xff],
            &[0x1b, 0, 0, 0, 0, 0xff, 0xff, 0xff, 0xff],
            &[0x1f],
        ] {
            assert_eq!(Reader::new(bytes).uint(), Err(CborError::NotShortest), "{bytes:x?}");
            assert_eq!(well_formed(bytes), Err(CborError::NotShortest), "{bytes:x?}");
        }
        // An indefinite byte string and an indefinite map.
        assert_eq!(Reader::new(&[0x5f, 0x41, 0, 0xff]).bytes(), Err(CborError::NotShortest));
        assert_eq!(well_formed(&[0xbf, 0xff]), Err(CborError::NotShortest));
    }

    #[test]
    fn labels_out_of_order_twice_unknown_or_missing_are_refused() {
        let refuse = |bytes: &[u8]| {
            let mut reader = Reader::new(bytes);
            let mut fields = reader.map().unwrap();
            let one = fields.required(1).and_then(|r| r.uint());
            let two = one.and_then(|_| fields.optional(2)?.map(Reader::uint).transpose());
            two.and_then(|_| fields.finish()).unwrap_err()
        };
        assert_eq!(refuse(&[0xa2, 2, 0, 1, 0]), CborError::Label);
        assert_eq!(refuse(&[0xa2, 1, 0, 1, 0]), CborError::Label);
        assert_eq!(refuse(&[0xa2, 1, 0, 3, 0]), CborError::Label);
        assert_eq!(refuse(&[0xa1, 2, 0]), CborError::Label);
        assert_eq!(refuse(&[0xa2, 1, 0]), CborError::Truncated);
        assert_eq!(well_formed(&[0xa2, 2, 0, 1, 0]), Err(CborError::Label));
        assert_eq!(well_formed(&[0xa2, 1, 0, 1, 0]), Err(CborError::Label));
    }

    #[test]
    fn a_length_beyond_the_end_is_refused_without_allocating() {
        assert_eq!(
            Reader::new(&[0x5b, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff]).bytes(),
            Err(CborError::Truncated)
        );
        assert_eq!(
            well_formed(&[0x9b, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff]),
            Err(CborError::Truncated)
        );
        assert_eq!(well_formed(&[0x81; 64]), Err(CborError::Range));
    }

    proptest! {
        #[test]
        fn what_is_written_is_read_back(value: i64, number: u64, bytes: Vec<u8>, text: String) {
            let mut writer = Writer::default();
            writer.array(4).int(value).uint(number).bytes(&bytes).text(&text);
            let written = writer.finish();
            prop_assert_eq!(well_formed(&written), Ok(()));
            let mut reader = Reader::new(&written);
            prop_assert_eq!(reader.array(4, 4), Ok(4));
            prop_assert_eq!(reader.int(), Ok(value));
            prop_assert_eq!(reader.uint(), Ok(number));
            prop_assert_eq!(reader.bytes(), Ok(&bytes[..]));
            prop_assert_eq!(reader.text(), Ok(&text[..]));
            prop_assert_eq!(reader.finish(), Ok(()));
        }
    }
}
