//! The full ARN of a KMS key: `arn:<partition>:kms:<region>:<12 digits>:key/<id>`.
//!
//! Never an alias (whoever may move an alias would choose the key) and never a bare id (which names no
//! account). The same bytes stand in the statement, in the provider info of every envelope and in the
//! call to KMS, so nothing is normalised: what differs by one byte is another key.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

/// Longest ARN that is read; the longest AWS makes is under 130 bytes.
const MAX_ARN: usize = 256;

/// Why some text is not a full key ARN.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ArnError {
    /// Longer than any ARN that KMS makes.
    #[error("longer than {MAX_ARN} bytes")]
    TooLong,
    /// Not six fields that begin with `arn` and name the service `kms`.
    #[error("not of the form arn:<partition>:kms:<region>:<account>:key/<id>")]
    Form,
    /// An alias, which can be moved to another key by whoever holds the account.
    #[error("an alias is not a key: give the full key ARN")]
    Alias,
    /// The account is not 12 digits.
    #[error("the account is not 12 digits")]
    Account,
    /// A field is empty or holds a byte that no ARN has.
    #[error("a field is empty or holds a byte that no key ARN has")]
    Field,
}

/// A full KMS key ARN. Cheap to clone; equality is equality of bytes.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct KeyArn(Arc<str>);

impl KeyArn {
    /// Reads a full key ARN, exactly.
    pub fn new(text: &str) -> Result<KeyArn, ArnError> {
        if text.len() > MAX_ARN {
            return Err(ArnError::TooLong);
        }
        let mut fields = text.splitn(6, ':');
        let mut next = || fields.next().ok_or(ArnError::Form);
        let (arn, partition, service, region, account, resource) =
            (next()?, next()?, next()?, next()?, next()?, next()?);
        if arn != "arn" || service != "kms" {
            return Err(ArnError::Form);
        }
        if resource.starts_with("alias/") {
            return Err(ArnError::Alias);
        }
        let id = resource.strip_prefix("key/").ok_or(ArnError::Form)?;
        if account.len() != 12 || !account.bytes().all(|b| b.is_ascii_digit()) {
            return Err(ArnError::Account);
        }
        let lower = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-';
        let named = |field: &str, ok: fn(u8) -> bool| !field.is_empty() && field.bytes().all(ok);
        if !named(partition, lower)
            || !named(region, lower)
            || !named(id, |b| b.is_ascii_alphanumeric() || b == b'-')
        {
            return Err(ArnError::Field);
        }
        Ok(KeyArn(text.into()))
    }

    /// The ARN as it was read.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    fn field(&self, index: usize) -> &str {
        self.0.split(':').nth(index).unwrap_or_default()
    }

    /// The partition, `aws` in most places.
    pub fn partition(&self) -> &str {
        self.field(1)
    }

    /// The region whose endpoint answers for the key.
    pub fn region(&self) -> &str {
        self.field(3)
    }

    /// The twelve digits of the account that owns the key.
    pub fn account(&self) -> &str {
        self.field(4)
    }

    /// The key's id, without `key/`.
    pub fn key_id(&self) -> &str {
        self.field(5).trim_start_matches("key/")
    }
}

impl fmt::Display for KeyArn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for KeyArn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "KeyArn({})", self.0)
    }
}

impl FromStr for KeyArn {
    type Err = ArnError;
    fn from_str(text: &str) -> Result<KeyArn, ArnError> {
        KeyArn::new(text)
    }
}

impl AsRef<str> for KeyArn {
    fn as_ref(&self) -> &str {
        &self.0
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    const GOOD: &str = "arn:aws:kms:ap-southeast-2:111122223333:key/00000000-12ab-34cd-56ef-1234567890ab";

    #[test]
    fn a_full_key_arn_is_read_and_taken_apart() {
        let arn = KeyArn::new(GOOD).unwrap();
        assert_eq!((arn.partition(), arn.region(), arn.account()), ("aws", "ap-southeast-2", "111122223333"));
        assert_eq!(arn.key_id(), "00000000-12ab-34cd-56ef-1234567890ab");
        assert_eq!(arn.to_string(), GOOD);
        assert!(KeyArn::new("arn:aws-us-gov:kms:us-gov-west-1:111122223333:key/mrk-0a1b").is_ok());
    }

    #[test]
    fn an_alias_a_bare_id_and_a_wrong_account_are_refused() {
        let refused = [
            ("arn:aws:kms:eu-west-1:111122223333:alias/mine", ArnError::Alias),
            ("alias/mine", ArnError::Form),
            ("00000000-12ab-34cd-56ef-1234567890ab", ArnError::Form),
            ("arn:aws:s3:eu-west-1:111122223333:key/a", ArnError::Form),
            ("arn:aws:kms:eu-west-1:11112222333:key/a", ArnError::Account),
            ("arn:aws:kms:eu-west-1:11112222333x:key/a", ArnError::Account),
            ("arn:aws:kms::111122223333:key/a", ArnError::Field),
            ("arn:aws:kms:eu-west-1:111122223333:key/", ArnError::Field),
            ("arn:aws:kms:eu-west-1:111122223333:key/a/b", ArnError::Field),
            ("arn:aws:kms:eu-west-1:111122223333:key/a:b", ArnError::Field),
            ("arn:AWS:kms:eu-west-1:111122223333:key/a", ArnError::Field),
            ("arn:aws:kms:eu-west-1:111122223333:key/a ", ArnError::Field),
        ];
        for (text, error) in refused {
            assert_eq!(KeyArn::new(text), Err(error), "{text}");
        }
        assert_eq!(KeyArn::new(&"a".repeat(MAX_ARN + 1)), Err(ArnError::TooLong));
    }
}
