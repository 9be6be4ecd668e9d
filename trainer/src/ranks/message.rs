//! What ranks say to each other while they meet: JSON behind its length.
use std::io::{Error, ErrorKind, Read, Write};

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

/// Nobody else opens a connection like this.
pub(super) const MAGIC: &str = "nepa ranks 1";
/// No message is longer; a stranger's first bytes are no length.
const LONGEST: u32 = 1 << 20;

/// A rank to rank 0.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) struct Hello {
    pub magic: String,
    pub version: String,
    pub rank: usize,
    pub size: usize,
    /// Where it waits for its neighbours.
    pub port: u16,
}

/// Rank 0's answer, once all have come.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) enum Answer {
    /// Where each rank is to be found; none for one on the machine of rank 0. The token belongs to
    /// this run.
    Welcome {
        token: String,
        addresses: Vec<(Option<std::net::IpAddr>, u16)>,
    },
    /// The run cannot begin, and why.
    Refused(String),
}

/// A rank to a neighbour below it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) struct Join {
    pub magic: String,
    pub token: String,
    pub rank: usize,
}

pub(super) fn write(stream: &mut impl Write, message: &impl Serialize) -> std::io::Result<()> {
    let text = serde_json::to_vec(message).expect("a message is plain data");
    let mut bytes = (text.len() as u32).to_le_bytes().to_vec();
    bytes.extend(text);
    stream.write_all(&bytes)
}

pub(super) fn read<T: DeserializeOwned>(stream: &mut impl Read) -> std::io::Result<T> {
    let mut length = [0; 4];
    stream.read_exact(&mut length)?;
    let length = u32::from_le_bytes(length);
    if length > LONGEST {
        return Err(Error::new(
            ErrorKind::InvalidData,
            "not a message of a rank",
        ));
    }
    let mut text = vec![0; length as usize];
    stream.read_exact(&mut text)?;
    serde_json::from_slice(&text).map_err(Error::from)
}
