//! Protobuf's wire format: a sequence of numbered records.

/// Bytes that are no protobuf.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Malformed;

/// Content of one record.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Record<'a> {
    Varint(u64),
    Fixed,
    Bytes(&'a [u8]),
}

/// The records of a message.
pub(super) struct Records<'a> {
    rest: &'a [u8],
}

impl<'a> Records<'a> {
    pub fn new(bytes: &'a [u8]) -> Self {
        Self { rest: bytes }
    }

    fn record(&mut self) -> Result<(u32, Record<'a>), Malformed> {
        let tag = varint(&mut self.rest)?;
        let number =
            u32::try_from(tag >> 3).ok().filter(|number| (1..1 << 29).contains(number)).ok_or(Malformed)?;
        let record = match tag & 7 {
            0 => Record::Varint(varint(&mut self.rest)?),
            1 => take(&mut self.rest, 8).map(|_| Record::Fixed)?,
            2 => {
                let length = usize::try_from(varint(&mut self.rest)?).map_err(|_| Malformed)?;
                Record::Bytes(take(&mut self.rest, length)?)
            }
            5 => take(&mut self.rest, 4).map(|_| Record::Fixed)?,
            // Groups are of proto2; nothing in xDS has them.
            _ => return Err(Malformed),
        };
        Ok((number, record))
    }
}

impl<'a> Iterator for Records<'a> {
    type Item = Result<(u32, Record<'a>), Malformed>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.rest.is_empty() {
            return None;
        }
        let record = self.record();
        if record.is_err() {
            self.rest = &[];
        }
        Some(record)
    }
}

/// The elements of a packed field.
pub(super) fn varints(mut packed: &[u8]) -> impl Iterator<Item = Result<u64, Malformed>> {
    std::iter::from_fn(move || {
        (!packed.is_empty()).then(|| varint(&mut packed).inspect_err(|_| packed = &[]))
    })
}

fn take<'a>(rest: &mut &'a [u8], length: usize) -> Result<&'a [u8], Malformed> {
    let (taken, left) = rest.split_at_checked(length).ok_or(Malformed)?;
    *rest = left;
    Ok(taken)
}

fn varint(rest: &mut &[u8]) -> Result<u64, Malformed> {
    let mut value = 0;
    for (i, byte) in rest.iter().take(10).enumerate() {
        value |= u64::from(byte & 0x7f) << (7 * i);
        if byte & 0x80 == 0 {
            *rest = &rest[i + 1..];
            return Ok(value);
        }
    }
    Err(Malformed)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_each_kind_of_record() {
        let bytes = [0x08, 0x96, 0x01, 0x12, 2, b'h', b'i', 0x1d, 1, 2, 3, 4, 0x21, 1, 2, 3, 4, 5, 6, 7, 8];
        let records: Result<Vec<_>, _> = Records::new(&bytes).collect();
        let expected =
            vec![(1, Record::Varint(150)), (2, Record::Bytes(b"hi")), (3, Record::Fixed), (4, Record::Fixed)];
        assert_eq!(records, Ok(expected));
    }

    #[test]
    fn refuses_what_is_cut_off_or_no_protobuf() {
        let cases: &[&[u8]] = &[
            &[0x08],                                                             // no value
            &[0x12, 5, 1],                                                       // shorter than it says
            &[0x1d, 1, 2],                                                       // half of a fixed32
            &[0x00, 1],                                                          // field 0
            &[0x0b],                                                             // a group
            &[0x80; 11],                                                         // a varint without end
            &[0x12, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x01], // a length beyond memory
        ];
        for bytes in cases {
            assert!(Records::new(bytes).any(|record| record.is_err()), "{bytes:x?}");
        }
    }
}
