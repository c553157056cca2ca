//! A bundle as text: what a QR code holds, an e-mail, or a line that somebody reads out of a terminal.
//!
//! ```text
//! pithead-keys-1:CgphY21l...      base64url without padding (RFC 4648, 5) of the message
//! ```
//!
//! A file may hold the message or the text; [`KeyFile::read`] takes either. White space around and in the text is passed
//! over: mail programs and terminals break lines.

use base64ct::{Base64UrlUnpadded, Encoding as _};
use bytes::Bytes;

use super::{
    MESSAGE_MAX,
    wire::{KeyFile, WireError},
};

/// What a text begins with. No protobuf message of ours does: its first byte would name a field that there is none of.
pub const TEXT_PREFIX: &str = "pithead-keys-1:";

/// Characters of the longest text: four for three bytes, and a line break after every few dozen.
const TEXT_MAX: usize = MESSAGE_MAX / 3 * 4 * 2;

impl KeyFile {
    /// The bundle as text, in one line.
    pub fn to_text(&self) -> String {
        format!("{TEXT_PREFIX}{}", Base64UrlUnpadded::encode_string(&self.encode()))
    }

    /// Reads what a file holds: the message, or the text.
    ///
    /// # Errors
    /// [`WireError`]; nothing in it was verified.
    pub fn read(content: Bytes) -> Result<Self, WireError> {
        let Some(text) = content.trim_ascii_start().strip_prefix(TEXT_PREFIX.as_bytes()) else {
            return Self::decode(content);
        };
        if text.len() > TEXT_MAX {
            return Err(WireError::TooLong);
        }
        let text: Vec<u8> = text.iter().copied().filter(|byte| !byte.is_ascii_whitespace()).collect();
        let text = str::from_utf8(&text).map_err(|_| WireError::Malformed)?;
        let message = Base64UrlUnpadded::decode_vec(text).map_err(|_| WireError::Malformed)?;
        Self::decode(message.into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use pithead_sealing::{Site, trust::Bundle};

    fn some() -> KeyFile {
        let bundle = Bundle { statement: Some(Bytes::from_static(b"statement")), ..Bundle::default() };
        KeyFile { authority: "acme-mining/prod".into(), site: Site::new("pit-7").expect("a name"), bundle }
    }

    #[test]
    fn a_file_is_read_as_a_message_and_as_text_however_its_lines_were_broken() {
        let file = some();
        assert_eq!(KeyFile::read(file.encode().into()), Ok(file.clone()));
        let text = file.to_text();
        assert_eq!(KeyFile::read(text.clone().into()), Ok(file.clone()));
        let broken: String =
            text.as_bytes().chunks(7).map(|line| format!("{}\r\n", String::from_utf8_lossy(line))).collect();
        let broken = broken.replacen("\r\n", "", 3);
        assert_eq!(KeyFile::read(format!("\n {broken}").into()), Ok(file));
    }

    #[test]
    fn text_that_is_cut_or_changed_is_no_bundle() {
        let text = some().to_text();
        assert!(KeyFile::read(Bytes::from(text[..text.len() - 1].to_owned())).is_err());
        for rubbish in ["pithead-keys-1:*", "pithead-keys-1:\u{e9}", "pithead-keys-1:", "pithead-keys-2:AAAA"]
        {
            assert!(KeyFile::read(Bytes::from_static(rubbish.as_bytes())).is_err(), "{rubbish}");
        }
        let long = format!("{TEXT_PREFIX}{}", " ".repeat(TEXT_MAX + 1));
        assert_eq!(KeyFile::read(long.into()), Err(WireError::TooLong));
    }
}
