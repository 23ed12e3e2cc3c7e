//! gRPC's messages in and out, as prost has them; of one that comes in, first how many trajectories it holds. An entry of two
//! bytes takes a hundred once it is decoded, and a compressed message is a thousand times as long as it was.

use std::any::TypeId;
use std::marker::PhantomData;
use std::sync::atomic::{AtomicUsize, Ordering};

use prost::Message;
use tonic::codec::{BufferSettings, Codec, DecodeBuf, Decoder};
use tonic::metadata::MetadataValue;
use tonic::{Code, Status};
use tonic_prost::{ProstCodec, ProstDecoder, ProstEncoder};

use crate::v1::TokenizeRequest;

static MOST: AtomicUsize = AtomicUsize::new(usize::MAX);

/// From now on this process decodes no message that holds more trajectories than that: [`Code::InvalidArgument`].
pub fn bound(trajectories: usize) {
    MOST.store(trajectories, Ordering::Relaxed);
}

/// What the generated code names.
#[derive(Debug, Clone)]
pub struct BoundedCodec<T, U>(PhantomData<(T, U)>);

impl<T, U> Default for BoundedCodec<T, U> {
    fn default() -> Self {
        Self(PhantomData)
    }
}

impl<T: Message + Send + 'static, U: Message + Default + Send + 'static> Codec for BoundedCodec<T, U> {
    type Encode = T;
    type Decode = U;
    type Encoder = ProstEncoder<T>;
    type Decoder = BoundedDecoder<U>;

    fn encoder(&mut self) -> ProstEncoder<T> {
        ProstCodec::<T, U>::new().encoder()
    }

    fn decoder(&mut self) -> BoundedDecoder<U> {
        BoundedDecoder(ProstCodec::<T, U>::new().decoder())
    }
}

/// Counts, then decodes.
#[derive(Debug, Clone)]
pub struct BoundedDecoder<U>(ProstDecoder<U>);

impl<U: Message + Default + 'static> Decoder for BoundedDecoder<U> {
    type Item = U;
    type Error = Status;

    fn decode(&mut self, buf: &mut DecodeBuf<'_>) -> Result<Option<U>, Status> {
        let most = MOST.load(Ordering::Relaxed);
        if most < usize::MAX {
            let message = prost::bytes::Buf::chunk(buf);
            match TypeId::of::<U>() == TypeId::of::<TokenizeRequest>() {
                true => check_turns(message, most)?,
                false => check(message, most)?,
            }
        }
        // Bytes that are no message are the sender's mistake.
        self.0.decode(buf).map_err(|status| Status::invalid_argument(status.message()))
    }

    fn buffer_settings(&self) -> BufferSettings {
        self.0.buffer_settings()
    }
}

/// `ScoreRequest` and `ScoreStreamRequest` have inputs in field 2, an input its messages in field 4 and its responses in
/// field 5. What others have there is few.
fn check(message: &[u8], most: usize) -> Result<(), Status> {
    let (mut trajectories, mut turns) = (0, 0);
    for input in fields(message).filter_map(|(tag, field)| (tag == 2).then_some(field)) {
        let mut responses = 0;
        for (tag, field) in fields(input) {
            match tag {
                4 => turns += fields(field).count(),
                5 => responses += 1,
                _ => {}
            }
        }
        trajectories += responses.max(1);
    }
    if trajectories > most {
        return Err(too_many(format!("{trajectories} trajectories, at most {most} are taken")));
    }
    enough(turns, message, most)
}

/// `TokenizeRequest` has messages in field 3, and a text in field 2.
fn check_turns(message: &[u8], most: usize) -> Result<(), Status> {
    let lists = fields(message).filter_map(|(tag, field)| (tag == 3).then_some(field));
    enough(lists.map(|list| fields(list).count()).sum(), message, most)
}

/// A turn that says anything has eight bytes or more.
fn enough(turns: usize, message: &[u8], most: usize) -> Result<(), Status> {
    match turns > most && turns > message.len() / 8 {
        true => Err(too_many(format!("{turns} messages with nothing in them"))),
        false => Ok(()),
    }
}

fn too_many(message: String) -> Status {
    let mut status = Status::new(Code::InvalidArgument, message);
    status.metadata_mut().insert("qrm-code", MetadataValue::from_static("request_too_large"));
    status.metadata_mut().insert("qrm-param", MetadataValue::from_static("inputs"));
    status
}

/// The fields of a message that have a length, up to what is no message: prost says what is wrong with it.
fn fields(mut message: &[u8]) -> impl Iterator<Item = (u64, &[u8])> {
    std::iter::from_fn(move || {
        loop {
            let key = varint(&mut message)?;
            let length = match key & 7 {
                0 => {
                    varint(&mut message)?;
                    continue;
                }
                1 => 8,
                2 => usize::try_from(varint(&mut message)?).ok()?,
                5 => 4,
                // A group, which prost goes past: what is in it and after it counts as well.
                3 | 4 => continue,
                _ => return None,
            };
            let (field, rest) = message.split_at_checked(length)?;
            message = rest;
            if key & 7 == 2 {
                return Some((key >> 3, field));
            }
        }
    })
}

fn varint(bytes: &mut &[u8]) -> Option<u64> {
    let mut value = 0u64;
    for shift in (0..64).step_by(7) {
        let (first, rest) = bytes.split_first()?;
        *bytes = rest;
        value |= u64::from(first & 0x7f) << shift;
        if first & 0x80 == 0 {
            return Some(value);
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::v1::input::Context;
    use crate::v1::tokenize_request::Content;
    use crate::v1::{Input, Message as Turn, Messages, Options, Response, ScoreRequest, ScoreStreamRequest};

    fn input(responses: usize, turns: usize) -> Input {
        let messages = vec![Turn { role: "user".into(), content: "Two?".into() }; turns];
        Input {
            context: Some(Context::Messages(Messages { messages })),
            responses: vec![Response { content: None }; responses],
            add_special_tokens: true,
            ..Input::default()
        }
    }

    #[test]
    fn trajectories_are_counted_before_they_are_decoded() {
        let options = Some(Options { scale: Some(2.0), priority: -1, ..Options::default() });
        let inputs = vec![input(3, 2), input(0, 9), input(1, 1)];
        let message = ScoreRequest { options, inputs }.encode_to_vec();
        assert!(check(&message, 5).is_ok());
        let refused = check(&message, 4).unwrap_err();
        assert_eq!(
            (refused.code(), refused.message()),
            (Code::InvalidArgument, "5 trajectories, at most 4 are taken")
        );
        let one = ScoreStreamRequest { options: None, input: Some(input(7, 1)) }.encode_to_vec();
        assert!(check(&one, 7).is_ok() && check(&one, 6).is_err());
        // Empty entries.
        assert!(check(&[0x12, 0].repeat(6), 5).is_err());
        assert!(check(&[&[0x7b, 0x7c][..], &[0x12, 0].repeat(6)].concat(), 5).is_err());
        assert!(check_turns(&[&[0x1a, 20][..], &[0x0a, 0].repeat(10)].concat(), 9).is_err());
        // A text, which would be responses if it were an input.
        let text = TokenizeRequest {
            content: Some(Content::Prompt("*".repeat(4 * 44))),
            ..TokenizeRequest::default()
        };
        assert!(check(&text.encode_to_vec(), 3).is_err() && check_turns(&text.encode_to_vec(), 0).is_ok());
        let turns = [&[0x12, 22, 0x22, 20][..], &[0x0a, 0].repeat(10)].concat();
        assert!(check(&turns, 9).is_err() && check(&turns, 10).is_ok());
    }

    #[test]
    fn what_is_no_message_is_left_to_prost() {
        for bad in [&[0x12, 9, 1][..], &[0xff; 12], &[0x17, 0x12, 0], &[0x12]] {
            assert!(check(bad, 0).is_ok());
        }
    }
}
