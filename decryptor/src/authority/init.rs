//! `authority init`: the first root and the keys that it names.

use std::path::Path;
use std::time::Duration;

use pithead_sealing::trust::authoring::{Draft, SigningKey};
use pithead_sealing::trust::{
    Algorithm, Custody, KeyArn, Kid, Policy, Role, RoleSpki, Root, RootFields, RootKey,
    SUITE_RSA_OAEP_SHA256, Sha256Digest, UnixTime, verify,
};
use serde_json::json;

use super::audit;
use super::dir::AuthorityDir;
use super::error::AuthorityError;
use super::key_file::{self, Passphrase};

/// Longest life of a root.
pub(super) const MAX_ROOT_LIFE: Duration = Duration::from_secs(2 * 366 * 86_400);

/// What a new authority is to be.
#[derive(Debug)]
pub struct InitOptions {
    /// Its name for ever, such as `acme-mining/prod`.
    pub authority: String,
    /// How many root keys.
    pub root_keys: usize,
    /// How many of them sign a root.
    pub root_threshold: usize,
    /// Of all keys.
    pub algorithm: Algorithm,
    /// How long a key is announced, in operating time of the vehicles.
    pub hold_down: Duration,
    /// Shortest RSA modulus.
    pub min_rsa_bits: u64,
    /// Life of the root, at most two years.
    pub root_life: Duration,
    /// Longest life of a statement.
    pub max_statement_validity: Duration,
    /// Under which the root keys are written.
    pub root_passphrase: Option<Passphrase>,
    /// The statement key, if it is in KMS and not to be made here as a file.
    pub kms_statement_key: Option<(KeyArn, RoleSpki)>,
}

impl InitOptions {
    /// The defaults of the trust document: two root keys, both needed; 3 days; 3,072 bits; 2 years; 400 days.
    pub fn new(authority: impl Into<String>) -> InitOptions {
        let days = |days: u64| Duration::from_secs(days * 86_400);
        InitOptions {
            authority: authority.into(),
            root_keys: 2,
            root_threshold: 2,
            algorithm: Algorithm::Esp256,
            hold_down: days(3),
            min_rsa_bits: 3072,
            root_life: days(730),
            max_statement_validity: days(400),
            root_passphrase: None,
            kms_statement_key: None,
        }
    }

    fn check(&self) -> Result<(), AuthorityError> {
        let name = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || b"-._/".contains(&byte);
        let named = self.authority.bytes().all(name) && (1..=128).contains(&self.authority.len());
        if !named || !self.authority.starts_with(|first: char| first.is_ascii_alphanumeric()) {
            return Err(AuthorityError::Request(
                "an authority's name is 1 to 128 of a-z, 0-9, '-', '.', '_' and '/', and begins with a letter or digit",
            ));
        }
        if self.root_threshold == 0 || self.root_threshold > self.root_keys || self.root_keys > 8 {
            return Err(AuthorityError::Request(
                "there are 1 to 8 root keys, and the threshold is one of them",
            ));
        }
        if ![2048, 3072, 4096].contains(&self.min_rsa_bits) {
            return Err(AuthorityError::Request("KMS has RSA keys of 2048, 3072 and 4096 bits"));
        }
        if self.root_life > MAX_ROOT_LIFE || self.root_life.is_zero() {
            return Err(AuthorityError::Request("a root lives for at most two years"));
        }
        Ok(())
    }
}

/// Makes the keys and the first root, reads the root back as a device does, and writes it all. The root is written last:
/// where it is, the authority is complete.
///
/// # Errors
/// [`AuthorityError`]; a folder that holds an authority is left alone.
pub fn init(path: &Path, options: &InitOptions, now: UnixTime) -> Result<Root, AuthorityError> {
    options.check()?;
    let dir = AuthorityDir::create(path)?;
    let generate = |_| key_file::generate(options.algorithm);
    let root_keys: Vec<SigningKey> = (0..options.root_keys).map(generate).collect::<Result<_, _>>()?;
    let (statement_file, statement_key, custody) = match &options.kms_statement_key {
        Some((_, public)) => (None, public.clone(), Custody::CloudHsm),
        None => {
            let key = generate(0)?;
            let public = key.public();
            (Some(key), public, Custody::KeyFile)
        }
    };

    let fields = first_root(options, &root_keys, statement_key, custody, now);
    let mut draft = Draft::root(&fields)?;
    for key in &root_keys {
        draft.sign(key)?;
    }
    let object = draft.finish()?;
    let root = verify::first_root(&options.authority, &object).map_err(AuthorityError::RootRefused)?;

    audit::record(
        &dir,
        now,
        "authority.init",
        json!({
            "authority": options.authority, "root_version": root.version, "root": root.digest().to_string(),
            "signed_by": root_keys.iter().map(|key| key.public().kid().to_string()).collect::<Vec<_>>(),
            "root_keys_encrypted": options.root_passphrase.is_some(),
            "statement_key": root.statement_role.kids.iter().map(ToString::to_string).collect::<Vec<_>>(),
            "statement_kms_key": options.kms_statement_key.as_ref().map(|(arn, _)| arn.as_str()),
        }),
    )?;
    for (number, key) in (1..).zip(&root_keys) {
        let pem = key_file::to_pem(key, options.root_passphrase.as_ref())?;
        dir.keep_key(&format!("root-{number}"), pem.as_bytes())?;
    }
    if let Some(key) = &statement_file {
        dir.keep_key("statement-1", key_file::to_pem(key, None)?.as_bytes())?;
    }
    dir.keep_root(&root)?;
    Ok(root)
}

fn first_root(
    options: &InitOptions,
    root_keys: &[SigningKey],
    statement_key: RoleSpki,
    custody: Custody,
    now: UnixTime,
) -> RootFields {
    let kids = |keys: &[RootKey]| keys.iter().map(|key| key.spki.kid()).collect::<Vec<Kid>>();
    let listed =
        |(number, key): (usize, &SigningKey)| RootKey { spki: key.public(), label: format!("root-{number}") };
    let mut keys: Vec<RootKey> = (1..).zip(root_keys).map(listed).collect();
    let root_role = Role { threshold: options.root_threshold as u64, kids: kids(&keys) };
    let statement_role = Role { threshold: 1, kids: vec![statement_key.kid()] };
    keys.push(RootKey { spki: statement_key, label: "statement-1".into() });
    RootFields {
        authority: options.authority.clone(),
        version: 1,
        epoch: 1,
        issued_at: now,
        expires_at: now.plus(options.root_life.as_secs()),
        root_role,
        statement_role,
        keys,
        denylist: Vec::new(),
        policy: Policy {
            hold_down_s: options.hold_down.as_secs(),
            min_rsa_bits: options.min_rsa_bits,
            suites: vec![SUITE_RSA_OAEP_SHA256],
            max_statement_validity_s: options.max_statement_validity.as_secs(),
            custody: Some(custody),
        },
        gateways: None,
        previous: Sha256Digest::ZERO,
    }
}
