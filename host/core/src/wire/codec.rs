//! Messages as the bytes of a packet: postcard, without names and without a frame.
//!
//! Both ends are the same program, so nothing has to be read by another version, and what never leaves the machine need not
//! be legible. Payloads stay JSON text, and are checked where they are read.

use alloc::vec::Vec;
use serde::{Serialize, de::DeserializeOwned};

use crate::limits::PACKET_MAX_MESSAGES;

/// The bytes are no messages, or a message has no form in bytes.
#[derive(Debug, thiserror::Error)]
pub enum CodecError {
    #[error(transparent)]
    Bytes(#[from] postcard::Error),
    #[error("more than {PACKET_MAX_MESSAGES} messages in a packet")]
    TooMany,
}

/// One message. A packet is at most [`PACKET_MAX_MESSAGES`] of them in a row.
///
/// # Errors
/// Never for the types of [`super`].
pub fn write<T: Serialize + ?Sized>(message: &T) -> Result<Vec<u8>, CodecError> {
    Ok(postcard::to_allocvec(message)?)
}

/// All messages of a packet. What it allocates is bounded by the packet: a count in it is not believed above a mebibyte in
/// advance.
///
/// # Errors
/// When the bytes are anything but whole messages of this type, or too many of them.
pub fn read<T: DeserializeOwned>(mut packet: &[u8]) -> Result<Vec<T>, CodecError> {
    let mut messages = Vec::new();
    while !packet.is_empty() {
        if messages.len() == PACKET_MAX_MESSAGES {
            return Err(CodecError::TooMany);
        }
        let (message, rest) = postcard::take_from_bytes(packet)?;
        packet = rest;
        messages.push(message);
    }
    Ok(messages)
}

/// A task as numbers; elsewhere it is legible.
pub(super) mod task {
    use serde::{Deserialize, Deserializer, Serialize, Serializer};

    use crate::id::{RunId, TaskRef};

    pub(crate) fn serialize<S: Serializer>(task: &TaskRef, s: S) -> Result<S::Ok, S::Error> {
        (task.run.0, task.step, task.item).serialize(s)
    }

    pub(crate) fn deserialize<'de, D: Deserializer<'de>>(d: D) -> Result<TaskRef, D::Error> {
        let (run, step, item) = Deserialize::deserialize(d)?;
        Ok(TaskRef { run: RunId(run), step, item })
    }
}

/// A payload as its text.
pub(super) mod json {
    use core::fmt;
    use serde::{Deserializer, Serializer, de};

    use crate::json::Json;

    pub(crate) fn serialize<S: Serializer>(json: &Json, s: S) -> Result<S::Ok, S::Error> {
        s.serialize_str(json.get())
    }

    pub(crate) fn deserialize<'de, D: Deserializer<'de>>(d: D) -> Result<Json, D::Error> {
        struct Text;
        impl de::Visitor<'_> for Text {
            type Value = Json;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("JSON text")
            }

            fn visit_str<E: de::Error>(self, text: &str) -> Result<Json, E> {
                Json::parse(text).map_err(E::custom)
            }
        }
        d.deserialize_str(Text)
    }
}

#[cfg(test)]
mod tests {
    use alloc::boxed::Box;

    use super::*;
    use crate::{
        id::{RunId, TaskRef},
        json::Json,
        limits::Limits,
        wire::{Body, Start, StartContext, StartGrants, ToWorker},
    };

    fn packet(input: &str) -> Vec<u8> {
        let start = Start {
            task: TaskRef { run: RunId(u128::MAX - 1), step: 2, item: Some(3) },
            attempt: 1,
            component: 4,
            context: StartContext {
                flow_id: "f".into(),
                step_id: "s".into(),
                max_attempts: 5,
                deadline_ms: 9,
                trace_parent: None,
            },
            input: Body::Inline(Json::parse(input).unwrap()),
            limits: Limits::DEFAULT,
            grants: StartGrants::default(),
            in_flight: 1,
        };
        let messages = [ToWorker::Load { component: 4 }, ToWorker::Start(Box::new(start))];
        messages.iter().flat_map(|message| write(message).unwrap()).collect()
    }

    #[test]
    fn a_packet_survives_its_bytes() {
        let bytes = packet(r#"{"a":[1,2.50]}"#);
        let messages: Vec<ToWorker> = read(&bytes).unwrap();
        let [ToWorker::Load { component: 4 }, ToWorker::Start(start)] = messages.as_slice() else { panic!() };
        assert_eq!(start.task, TaskRef { run: RunId(u128::MAX - 1), step: 2, item: Some(3) });
        assert_eq!(start.input, Body::Inline(Json::parse(r#"{"a":[1,2.50]}"#).unwrap()));
        let again: Vec<u8> = messages.iter().flat_map(|message| write(message).unwrap()).collect();
        assert_eq!(again, bytes);
    }

    #[test]
    fn a_packet_that_is_cut_anywhere_or_whose_payload_is_no_json_is_refused() {
        let bytes = packet("[1]");
        let first = write(&ToWorker::Load { component: 4 }).unwrap().len();
        for len in (1..bytes.len()).filter(|&len| len != first) {
            assert!(read::<ToWorker>(&bytes[..len]).is_err(), "{len}");
        }
        let place = bytes.windows(3).position(|part| part == b"[1]").unwrap();
        let mut broken = bytes;
        broken[place] = b'}';
        assert!(read::<ToWorker>(&broken).is_err());
    }

    #[test]
    fn as_many_messages_as_a_packet_may_hold_are_read_and_one_more_is_refused() {
        let mut bytes = write(&ToWorker::Load { component: 4 }).unwrap().repeat(PACKET_MAX_MESSAGES);
        assert_eq!(read::<ToWorker>(&bytes).unwrap().len(), PACKET_MAX_MESSAGES);
        bytes.extend_from_slice(&write(&ToWorker::Load { component: 4 }).unwrap());
        assert!(matches!(read::<ToWorker>(&bytes), Err(CodecError::TooMany)));
    }
}
