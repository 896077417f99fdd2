//! JSON text that is carried, not understood: payloads.

use alloc::{boxed::Box, string::String, sync::Arc};
use core::fmt;
use serde::{Deserialize, Deserializer, Serialize, Serializer, ser};
use serde_json::value::RawValue;

use crate::id::Digest;

/// One valid JSON value as compact text, cheap to clone.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Json(Arc<str>);

impl Json {
    /// Takes text that must be one JSON value.
    ///
    /// # Errors
    /// When it is not; the message has line and column.
    pub fn parse(text: &str) -> Result<Self, serde_json::Error> {
        serde_json::from_str::<&RawValue>(text).map(|raw| Self(raw.get().into()))
    }

    /// The JSON of a value.
    ///
    /// # Panics
    /// Never for the types of this crate: their maps have text keys.
    #[must_use]
    pub fn of<T: Serialize + ?Sized>(value: &T) -> Self {
        Self(serde_json::to_string(value).unwrap_or_else(|_| String::from("null")).into())
    }

    #[must_use]
    pub fn null() -> Self {
        Self("null".into())
    }

    #[must_use]
    pub fn get(&self) -> &str {
        &self.0
    }

    #[must_use]
    pub fn size_bytes(&self) -> u64 {
        self.0.len() as u64
    }
}

impl fmt::Debug for Json {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl Serialize for Json {
    fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        // A newline cannot stand in a record of one line; in JSON text outside strings it is only white space.
        if self.0.contains(['\n', '\r']) {
            let compact = self.0.replace(['\n', '\r'], " ");
            return RawValue::from_string(compact).map_err(ser::Error::custom)?.serialize(s);
        }
        serde_json::from_str::<&RawValue>(&self.0).map_err(ser::Error::custom)?.serialize(s)
    }
}

impl<'de> Deserialize<'de> for Json {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        Box::<RawValue>::deserialize(d).map(|raw| Self(Arc::from(raw.get())))
    }
}

/// JSON in place, or by the digest of a blob when it is above the inline bound ([`crate::limits::INLINE_MAX_BYTES`]).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Payload {
    #[serde(rename = "json")]
    Inline(Json),
    #[serde(rename = "blob")]
    Blob { digest: Digest, size_bytes: u64 },
}

impl Payload {
    #[must_use]
    pub fn size_bytes(&self) -> u64 {
        match self {
            Self::Inline(json) => json.size_bytes(),
            Self::Blob { size_bytes, .. } => *size_bytes,
        }
    }

    #[must_use]
    pub fn blob(&self) -> Option<Digest> {
        match self {
            Self::Inline(_) => None,
            Self::Blob { digest, .. } => Some(*digest),
        }
    }
}
