//! `authority ... --draft`, `authority cosign`, `authority accept`: a statement that root keys sign on machines that never meet.
//!
//! Promised to whoever is asked to sign: what the draft says is shown, whole and as plain text, and it is signed under the
//! fingerprint that was read and agreed on and under no other.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use bytes::Bytes;
use pithead_hop::program::ProgramError;
use pithead_sealing::Site;
use pithead_sealing::trust::{KeyStatus, UnixTime};

use super::holder::{HolderArgs, read};
use super::{Moment, StatementKeyArgs, describe, now_or};
use crate::authority::{self, AuthorityDir, StatementDraft, StatementRequest};

/// Arguments of `authority cosign`.
#[derive(Debug, Clone, clap::Args)]
pub struct CosignArgs {
    /// The draft
    pub draft: PathBuf,
    /// Who signs it
    #[command(flatten)]
    pub holder: HolderArgs,
}

/// Arguments of `authority accept`.
#[derive(Debug, Clone, clap::Args)]
pub struct AcceptArgs {
    /// The authority's folder
    #[arg(long, value_name = "DIR")]
    pub dir: PathBuf,
    /// What `cosign` wrote, from each signer
    #[arg(required = true)]
    pub signatures: Vec<PathBuf>,
    /// Who signs for the statement role
    #[command(flatten)]
    pub key: StatementKeyArgs,
    /// The time at which it is issued: seconds since 1970 or RFC 3339
    #[arg(long, hide = true)]
    pub now: Option<Moment>,
}

/// Writes the draft of an act.
pub(super) fn draft(
    dir: &AuthorityDir,
    request: &StatementRequest,
    out: &Path,
    now: UnixTime,
) -> Result<String, ProgramError> {
    let draft = authority::draft_statement(dir, request, now)?;
    authority::write_new(out, &draft.payload, 0o644)?;
    let mut text = described(&draft);
    let out = out.display();
    // Writing to a String does not fail.
    let _ = writeln!(
        text,
        "\nnext: on the machine of each signer, of the threshold of root keys:\n  \
         pithead-decryptor authority cosign {out} --key ROOT.pem --fingerprint {} --out NAME.signed\n\
         and here: pithead-decryptor authority accept --dir {} *.signed",
        draft.digest,
        dir.path().display()
    );
    Ok(text)
}

pub(super) fn cosign(args: &CosignArgs) -> Result<String, ProgramError> {
    let draft = authority::read_statement_draft(&read(&args.draft)?)?;
    let mut text = described(&draft);
    text += &args.holder.sign(
        &draft.digest,
        |key| authority::cosign(&draft, key),
        |_| "counts if the root lists it among its root keys".to_owned(),
    )?;
    Ok(text)
}

pub(super) async fn accept(args: &AcceptArgs) -> Result<String, ProgramError> {
    let signed: Vec<Bytes> = args.signatures.iter().map(|path| read(path)).collect::<Result<_, _>>()?;
    let dir = AuthorityDir::open(&args.dir)?;
    let signer = args.key.open(&dir).await?;
    let issued = authority::accept_statement(&dir, signer.as_ref(), &signed, now_or(args.now)).await?;
    let bundle = issued.statement.sites.first().map(|site| dir.bundle_path(site)).unwrap_or_default();
    Ok(describe(&issued, signer.as_ref(), &bundle))
}

/// What a draft says, for the one who is asked to sign it. Names and reasons are shown escaped: they come from somebody else.
fn described(draft: &StatementDraft) -> String {
    let fields = &draft.fields;
    let sites: Vec<&str> = fields.sites.iter().map(Site::as_str).collect();
    let at = authority::rfc3339;
    let mut text = format!(
        "statement    sequence {}, epoch {}, of {}\nsites        {}\nfingerprint  {}\nafter        {}\n\
         under        root version {}\nissued       {}\nstale        {}\nexpires      {}\n",
        fields.sequence,
        fields.epoch,
        fields.authority,
        sites.join(", "),
        draft.digest,
        fields.previous,
        fields.root_version,
        at(fields.issued_at),
        at(fields.refresh_by),
        at(fields.expires_at),
    );
    for key in &fields.keys {
        let what = match key.status {
            KeyStatus::Next => "stands by",
            KeyStatus::Active => "is sealed to",
            KeyStatus::Retired => "is sealed to no more, and decrypts",
            KeyStatus::Revoked => "is never sealed to again",
        };
        // Writing to a String does not fail.
        let _ = writeln!(
            text,
            "key          {:<8} {} ({} bits)\n             {}\n             {what}; since {}, at most until {}",
            authority::status_name(key.status),
            key.arn,
            key.bits,
            key.fingerprint,
            at(key.not_before),
            at(key.seal_until),
        );
        if let Some(until) = key.decrypt_until {
            let _ = writeln!(text, "             decrypts until {}", at(until));
        }
        if let Some(reason) = &key.reason {
            let _ = writeln!(text, "             reason {reason:?}");
        }
    }
    if let Some(ticket) = &fields.ticket {
        let _ = writeln!(text, "ticket       {ticket:?}");
    }
    if !fields.keys.iter().any(|key| key.status == KeyStatus::Next) {
        let _ = writeln!(
            text,
            "note         no key stands by: the active one could not be revoked without root keys"
        );
    }
    let _ = writeln!(
        text,
        "note         with the root keys' signatures an active key is used at once, announced or not"
    );
    text
}
