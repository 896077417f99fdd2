//! JSON text that is carried, not understood: payloads.

use alloc::{borrow::ToOwned, boxed::Box, sync::Arc};
use core::fmt;
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};
use serde_json::value::RawValue;

use crate::id::Digest;

/// One valid JSON value on one line, cheap to clone.
#[derive(Clone)]
pub struct Json(Arc<RawValue>);

impl Json {
    /// Takes text that must be one JSON value.
    ///
    /// # Errors
    /// When it is not; the message has line and column.
    pub fn parse(text: &str) -> Result<Self, serde_json::Error> {
        serde_json::from_str::<Box<RawValue>>(text).and_then(Self::on_one_line)
    }

    /// The JSON of a value.
    ///
    /// # Panics
    /// Never for the types of this crate: their maps have text keys.
    #[must_use]
    pub fn of<T: Serialize + ?Sized>(value: &T) -> Self {
        serde_json::value::to_raw_value(value).and_then(Self::on_one_line).unwrap_or_else(|_| Self::null())
    }

    #[must_use]
    pub fn null() -> Self {
        Self(RawValue::NULL.to_owned().into())
    }

    #[must_use]
    pub fn get(&self) -> &str {
        self.0.get()
    }

    #[must_use]
    pub fn size_bytes(&self) -> u64 {
        self.get().len() as u64
    }

    /// A newline cannot stand in a record of one line; in JSON text outside strings it is only white space.
    fn on_one_line(raw: Box<RawValue>) -> Result<Self, serde_json::Error> {
        let bytes = raw.get().as_bytes();
        if !bytes.contains(&b'\n') && !bytes.contains(&b'\r') {
            return Ok(Self(raw.into()));
        }
        RawValue::from_string(raw.get().replace(['\n', '\r'], " ")).map(|raw| Self(raw.into()))
    }
}

impl PartialEq for Json {
    fn eq(&self, other: &Self) -> bool {
        self.get() == other.get()
    }
}

impl Eq for Json {}

impl fmt::Debug for Json {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.get())
    }
}

impl Serialize for Json {
    fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        self.0.serialize(s)
    }
}

impl<'de> Deserialize<'de> for Json {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        Box::<RawValue>::deserialize(d).and_then(|raw| Self::on_one_line(raw).map_err(de::Error::custom))
    }
}

/// JSON in place, or by the digest of a blob when it is above the inline bound ([`crate::limits::INLINE_MAX_BYTES`]).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Payload {
    #[serde(rename = "json")]
    Inline(Json),
    #[serde(rename = "blob")]
    Blob(Box<BlobRef>),
}

/// A blob by its content. Boxed in a [`Payload`], because few payloads are blobs and every task holds one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BlobRef {
    pub digest: Digest,
    pub size_bytes: u64,
}

/// A larger blob cannot be: sums of many stay numbers, whatever a record says.
const BLOB_MAX_BYTES: u64 = 1 << 40;

impl Payload {
    #[must_use]
    pub fn size_bytes(&self) -> u64 {
        match self {
            Self::Inline(json) => json.size_bytes(),
            Self::Blob(blob) => blob.size_bytes.min(BLOB_MAX_BYTES),
        }
    }

    #[must_use]
    pub fn blob(&self) -> Option<Digest> {
        match self {
            Self::Inline(_) => None,
            Self::Blob(blob) => Some(blob.digest),
        }
    }
}
