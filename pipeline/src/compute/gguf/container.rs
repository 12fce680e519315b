//! The frame of a GGUF file: named values and the places of tensors. In: bytes. Out: [`Header`], or why it is none; and back.
//!
//! Knows nothing of models.

use std::{collections::BTreeMap, io::Read};

const MAGIC: [u8; 4] = *b"GGUF";
/// Those that are read. The first counted in 32 bits and is gone.
const VERSIONS: [u32; 2] = [2, 3];
const VERSION: u32 = 3;
/// A longer header is none: a vocabulary of 260,000 tokens with its merges, once more as JSON, has 60 MB.
const HEADER_MAX: u64 = 256 << 20;
/// Of an array in an array: none is of use here.
const DEPTH_MAX: usize = 4;
const ALIGNMENT: &str = "general.alignment";
const ALIGNMENT_DEFAULT: u64 = 32;

/// A value of the table. Whole numbers of all widths are one, as are reals.
#[derive(Clone, Debug, PartialEq)]
pub enum Value {
    Whole(i64),
    /// As written; one of 32 bits is the shortest decimal that gives it, so that 1e-6 stays 1e-6.
    Real(f64),
    Flag(bool),
    Text(String),
    Texts(Vec<String>),
    Wholes(Vec<i64>),
    Reals(Vec<f32>),
    /// An array that nothing here asks for.
    Other,
}

/// A tensor as the file announces it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    /// As the format numbers them.
    pub kind: u32,
    /// Outermost first: the file has it the other way round.
    pub shape: Vec<usize>,
    /// Of its first byte, from where tensors begin.
    pub offset: u64,
}

#[derive(Clone, Debug, Default, PartialEq)]
pub struct Header {
    pub values: BTreeMap<String, Value>,
    pub tensors: BTreeMap<String, Place>,
    /// Of the first tensor in the file.
    pub start: u64,
}

impl Header {
    /// `len`: bytes of the whole file.
    ///
    /// # Errors
    /// What is wrong, in words.
    pub fn read(from: impl Read, len: u64) -> Result<Header, String> {
        let mut from = Source { from, left: len.min(HEADER_MAX), at: 0 };
        let magic = from.array::<4>().map_err(|_| format!("{len} bytes are too short for a GGUF file"))?;
        if magic != MAGIC {
            return Err("it does not begin as a GGUF file does".into());
        }
        let version = from.u32()?;
        if !VERSIONS.contains(&version) {
            let other = if VERSIONS.contains(&version.swap_bytes()) { ", its numbers are big-endian" } else { "" };
            return Err(format!("it is of version {version}{other}; 2 and 3 are read"));
        }
        // At least a name's length, its kind, and a value; a name's length, dimensions, kind and offset.
        let (tensors, values) = (from.count(8 + 4 + 4 + 8, "tensors")?, from.count(8 + 4 + 1, "values")?);
        let mut header = Header::default();
        for _ in 0..values {
            let name = from.text()?;
            let kind = from.u32()?;
            let value = from.value(kind, 0).map_err(|why| format!("{name}: {why}"))?;
            if header.values.insert(name.clone(), value).is_some() {
                return Err(format!("{name} is there twice"));
            }
        }
        for _ in 0..tensors {
            let name = from.text()?;
            let place = from.place().map_err(|why| format!("tensor {name}: {why}"))?;
            if header.tensors.insert(name.clone(), place).is_some() {
                return Err(format!("tensor {name} is there twice"));
            }
        }
        let alignment = match header.values.get(ALIGNMENT) {
            None => ALIGNMENT_DEFAULT,
            Some(Value::Whole(n @ 1..=65_536)) if n.count_ones() == 1 => *n as u64,
            Some(other) => return Err(format!("{ALIGNMENT} is {other:?}, not a power of two up to 65536")),
        };
        header.start = from.at.next_multiple_of(alignment);
        Ok(header)
    }

    /// The header as bytes, up to where the tensors begin, which lie aligned to 32 bytes.
    pub fn write(values: &[(String, Value)], tensors: &[(String, Place)]) -> Vec<u8> {
        let mut out = MAGIC.to_vec();
        out.extend(VERSION.to_le_bytes());
        out.extend((tensors.len() as u64).to_le_bytes());
        out.extend((values.len() as u64).to_le_bytes());
        for (name, value) in values {
            put_text(&mut out, name);
            put(&mut out, value);
        }
        for (name, place) in tensors {
            put_text(&mut out, name);
            out.extend((place.shape.len() as u32).to_le_bytes());
            place.shape.iter().rev().for_each(|size| out.extend((*size as u64).to_le_bytes()));
            out.extend(place.kind.to_le_bytes());
            out.extend(place.offset.to_le_bytes());
        }
        out.resize(aligned(out.len() as u64) as usize, 0);
        out
    }
}

/// Where a tensor may begin, at `at` or after it.
pub fn aligned(at: u64) -> u64 {
    at.next_multiple_of(ALIGNMENT_DEFAULT)
}

struct Source<R> {
    from: R,
    /// Bytes that there still can be.
    left: u64,
    at: u64,
}

impl<R: Read> Source<R> {
    /// Nothing is reserved for what cannot be there.
    fn bytes(&mut self, count: u64) -> Result<Vec<u8>, String> {
        if count > self.left {
            return Err(format!("{count} bytes are announced and {} are left", self.left));
        }
        let mut bytes = vec![0; count as usize];
        self.from.read_exact(&mut bytes).map_err(|error| error.to_string())?;
        (self.left, self.at) = (self.left - count, self.at + count);
        Ok(bytes)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], String> {
        if N as u64 > self.left {
            return Err("it breaks off in its header: was the copy or download cut off?".into());
        }
        let mut bytes = [0; N];
        self.from.read_exact(&mut bytes).map_err(|error| error.to_string())?;
        (self.left, self.at) = (self.left - N as u64, self.at + N as u64);
        Ok(bytes)
    }

    fn u32(&mut self) -> Result<u32, String> {
        Ok(u32::from_le_bytes(self.array()?))
    }

    fn u64(&mut self) -> Result<u64, String> {
        Ok(u64::from_le_bytes(self.array()?))
    }

    /// How many follow, of at least `least` bytes each.
    fn count(&mut self, least: u64, what: &str) -> Result<u64, String> {
        let count = self.u64()?;
        if count > self.left / least.max(1) {
            return Err(format!("{count} {what} are announced, and {} bytes are left", self.left));
        }
        Ok(count)
    }

    fn text(&mut self) -> Result<String, String> {
        let len = self.u64()?;
        let bytes = self.bytes(len)?;
        // Some programs count the end mark of C in.
        let end = bytes.iter().rposition(|byte| *byte != 0).map_or(0, |last| last + 1);
        Ok(String::from_utf8_lossy(&bytes[..end]).into_owned())
    }

    fn place(&mut self) -> Result<Place, String> {
        let dimensions = self.u32()?;
        if dimensions > 4 {
            return Err(format!("{dimensions} dimensions; at most 4"));
        }
        let mut shape = Vec::new();
        for _ in 0..dimensions {
            let size = self.u64()?;
            shape.insert(0, usize::try_from(size).map_err(|_| format!("{size} values in a row"))?);
        }
        let product = shape.iter().try_fold(1usize, |product, size| product.checked_mul(*size));
        if product.is_none_or(|product| product > isize::MAX as usize / 8) {
            return Err(format!("{shape:?} are more values than a machine can hold"));
        }
        Ok(Place { kind: self.u32()?, shape, offset: self.u64()? })
    }

    fn value(&mut self, kind: u32, depth: usize) -> Result<Value, String> {
        Ok(match kind {
            6 => Value::Real(shortest(f32::from_le_bytes(self.array()?))),
            7 => Value::Flag(self.array::<1>()?[0] != 0),
            8 => Value::Text(self.text()?),
            9 => self.list(depth + 1)?,
            12 => Value::Real(f64::from_le_bytes(self.array()?)),
            kind => Value::Whole(self.whole(kind)?),
        })
    }

    fn whole(&mut self, kind: u32) -> Result<i64, String> {
        Ok(match kind {
            0 => self.array::<1>()?[0].into(),
            1 => (self.array::<1>()?[0] as i8).into(),
            2 => u16::from_le_bytes(self.array()?).into(),
            3 => i16::from_le_bytes(self.array()?).into(),
            4 => self.u32()?.into(),
            5 => i32::from_le_bytes(self.array()?).into(),
            10 => i64::try_from(self.u64()?).map_err(|_| "a number above 2^63")?,
            11 => i64::from_le_bytes(self.array()?),
            kind => return Err(format!("a value of kind {kind}, which there is none of")),
        })
    }

    fn list(&mut self, depth: usize) -> Result<Value, String> {
        let kind = self.u32()?;
        let least = match kind {
            0 | 1 | 7 => 1,
            2 | 3 => 2,
            4..=6 => 4,
            9 => 12,
            _ => 8,
        };
        let count = self.count(least, "values of an array")?;
        if depth > DEPTH_MAX {
            return Err("arrays in arrays in arrays".into());
        }
        // Grown as they come: what is announced is not yet there.
        match kind {
            8 => (0..count).map(|_| self.text()).collect::<Result<_, _>>().map(Value::Texts),
            6 => (0..count).map(|_| self.array().map(f32::from_le_bytes)).collect::<Result<_, _>>().map(Value::Reals),
            7 | 9 | 12 => {
                for _ in 0..count {
                    self.value(kind, depth)?;
                }
                Ok(Value::Other)
            }
            kind => (0..count).map(|_| self.whole(kind)).collect::<Result<_, _>>().map(Value::Wholes),
        }
    }
}

fn shortest(value: f32) -> f64 {
    value.to_string().parse().unwrap_or(f64::from(value))
}

fn put_text(out: &mut Vec<u8>, text: &str) {
    out.extend((text.len() as u64).to_le_bytes());
    out.extend(text.as_bytes());
}

/// Whole numbers are written in 32 bits: readers ask for this width. Arrays of them are signed, as those of token types are.
fn put(out: &mut Vec<u8>, value: &Value) {
    let list = |out: &mut Vec<u8>, kind: u32, count: usize| {
        out.extend(9u32.to_le_bytes());
        out.extend(kind.to_le_bytes());
        out.extend((count as u64).to_le_bytes());
    };
    match value {
        Value::Whole(n) => {
            out.extend(4u32.to_le_bytes());
            out.extend((*n as u32).to_le_bytes());
        }
        Value::Real(n) => {
            out.extend(6u32.to_le_bytes());
            out.extend((*n as f32).to_le_bytes());
        }
        Value::Flag(flag) => {
            out.extend(7u32.to_le_bytes());
            out.push(u8::from(*flag));
        }
        Value::Text(text) => {
            out.extend(8u32.to_le_bytes());
            put_text(out, text);
        }
        Value::Texts(texts) => {
            list(out, 8, texts.len());
            texts.iter().for_each(|text| put_text(out, text));
        }
        Value::Wholes(numbers) => {
            list(out, 5, numbers.len());
            numbers.iter().for_each(|n| out.extend((*n as i32).to_le_bytes()));
        }
        Value::Reals(numbers) => {
            list(out, 6, numbers.len());
            numbers.iter().for_each(|n| out.extend(n.to_le_bytes()));
        }
        Value::Other => list(out, 4, 0),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    type Named<T> = Vec<(String, T)>;

    fn sample() -> (Named<Value>, Named<Place>) {
        let values = [
            ("general.architecture", Value::Text("llama".into())),
            ("a.whole", Value::Whole(7)),
            ("a.real", Value::Real(1e-6)),
            ("a.flag", Value::Flag(true)),
            ("a.texts", Value::Texts(vec!["Ġthe".into(), String::new()])),
            ("a.wholes", Value::Wholes(vec![1, -3])),
            ("a.reals", Value::Reals(vec![0.5, -1.0])),
        ];
        let tensors = [("b", Place { kind: 8, shape: vec![3, 64], offset: 0 })];
        let named = |(name, value): &(&str, Value)| (name.to_string(), value.clone());
        let placed = |(name, place): &(&str, Place)| (name.to_string(), place.clone());
        (values.iter().map(named).collect(), tensors.iter().map(placed).collect())
    }

    fn read(bytes: &[u8]) -> Result<Header, String> {
        Header::read(bytes, bytes.len() as u64)
    }

    #[test]
    fn a_header_reads_back_as_it_was_here_and_elsewhere() {
        let (values, tensors) = sample();
        let bytes = Header::write(&values, &tensors);
        let header = read(&bytes).unwrap();
        assert_eq!(header.values, values.into_iter().collect());
        assert_eq!(header.tensors, tensors.into_iter().collect());
        assert_eq!((header.start, header.start % 32), (bytes.len() as u64, 0));
        let theirs = candle_core::quantized::gguf_file::Content::read(&mut std::io::Cursor::new(&bytes)).unwrap();
        assert_eq!((theirs.tensor_data_offset, theirs.metadata.len()), (header.start, 7));
        assert_eq!(theirs.tensor_infos["b"].shape.dims(), [3, 64]);
    }

    #[test]
    fn a_header_that_breaks_off_or_lies_is_an_error_and_reserves_nothing() {
        let (values, tensors) = sample();
        let bytes = Header::write(&values, &tensors);
        let end = bytes.iter().rposition(|byte| *byte != 0).unwrap_or(0);
        for cut in 0..end - 8 {
            assert!(read(&bytes[..cut]).is_err(), "{cut}");
        }
        for at in 0..bytes.len() - 8 {
            for lie in [u64::MAX, 1 << 60, 1 << 40] {
                let mut bytes = bytes.clone();
                bytes[at..at + 8].copy_from_slice(&lie.to_le_bytes());
                _ = read(&bytes);
            }
        }
        let long = |at: usize| {
            let mut bytes = bytes.clone();
            bytes[at..at + 8].copy_from_slice(&(1u64 << 59).to_le_bytes());
            read(&bytes).unwrap_err()
        };
        assert!(long(8).contains("tensors are announced"), "{}", long(8));
        assert!(long(16).contains("values are announced"), "{}", long(16));
        assert!(long(24).contains("bytes are announced"), "{}", long(24));
        let mut none = values;
        none.push((ALIGNMENT.into(), Value::Whole(0)));
        assert!(read(&Header::write(&none, &[])).unwrap_err().contains("power of two"));
        assert!(read(b"GGML\x03\0\0\0").unwrap_err().contains("does not begin"));
        assert!(read(b"GGUF\0\0\0\x03").unwrap_err().contains("big-endian"));
        let (_, mut tensors) = sample();
        tensors[0].1.shape = vec![usize::MAX, 4];
        assert!(read(&Header::write(&[], &tensors)).unwrap_err().contains("more values"));
    }
}
