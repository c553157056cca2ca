//! `authority root new-key | draft | sign | accept`.
//!
//! Promised to whoever is asked to sign: what the draft says is shown, whole and as plain text; it is signed under the
//! fingerprint that was read and agreed on and under no other; and no file that is there, a key least of all, is written over.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use bytes::Bytes;
use pithead_hop::program::{ProgramError, units};
use pithead_sealing::Site;
use pithead_sealing::trust::{
    Algorithm, Custody, KeyArn, Kid, MAX_SPKI, Role, RoleSpki, RootFields, RootKey, Sha256Digest, verify,
};

use super::changes::changes;
use super::holder::{HolderArgs, fingerprint, read};
use super::{Alg, Moment, now_or};
use crate::authority::{self, AuthorityDir, AuthorityError, Passphrase, RootChange, RootDraft};
use crate::kms::{Kms, KmsTimeouts};

/// Arguments of `authority root`.
#[derive(Debug, Clone, clap::Args)]
pub struct Args {
    /// What to do
    #[command(subcommand)]
    pub command: Command,
}

/// `authority root ...`
#[derive(Debug, Clone, clap::Subcommand)]
pub enum Command {
    /// Make a key on this machine, for a role of the next root
    NewKey(NewKeyArgs),
    /// Draft the next root: a file that every signer gets
    Draft(DraftArgs),
    /// Show what a draft says, and sign it with a key of this machine
    Sign(SignArgs),
    /// Bring the signatures together and put the root into force
    Accept(AcceptArgs),
}

/// Arguments of `authority root new-key`.
#[derive(Debug, Clone, clap::Args)]
pub struct NewKeyArgs {
    /// Where the key goes; its public half goes beside it, under the same name with .pub
    #[arg(long, value_name = "PEM")]
    pub out: PathBuf,
    /// How it signs
    #[arg(long, value_enum, default_value_t = Alg::P256)]
    pub alg: Alg,
    /// Encrypt it under the first line of this file
    #[arg(long, value_name = "FILE")]
    pub passphrase_file: Option<PathBuf>,
}

/// Arguments of `authority root draft`.
#[derive(Debug, Clone, clap::Args)]
pub struct DraftArgs {
    /// The authority's folder
    #[arg(long, value_name = "DIR")]
    pub dir: PathBuf,
    /// Where the draft goes
    #[arg(long, value_name = "FILE")]
    pub out: PathBuf,
    /// How long the root lives, at most two years; as long as the one before if it is not given
    #[arg(long, value_name = "TIME")]
    pub life: Option<units::Duration>,
    /// A root key that comes, with its public key in PEM or DER; may be given several times
    #[arg(long, value_name = "LABEL=PUB")]
    pub add_root_key: Vec<RoleKeyArg>,
    /// A root key that goes, by its kid; may be given several times
    #[arg(long, value_name = "KID")]
    pub remove_root_key: Vec<String>,
    /// How many root keys must sign a root
    #[arg(long, value_name = "N")]
    pub root_threshold: Option<u64>,
    /// The keys that sign statements from now on, instead of those before, with the public key in PEM or DER or asked of KMS; may be
    /// given several times. If all are in KMS, custody becomes cloud-hsm
    #[arg(long, value_name = "LABEL=PUB|LABEL=kms:ARN")]
    pub statement_key: Vec<RoleKeyArg>,
    /// A data key that is never used again, by its fingerprint; may be given several times
    #[arg(long, value_name = "SHA256")]
    pub deny: Vec<String>,
    /// Undo what a stolen statement key has signed: devices forget its statements, and the next one needs the root keys
    #[arg(long)]
    pub raise_epoch: bool,
    /// Who can cause a statement's signature, where the statement keys do not show it
    #[arg(long, value_enum)]
    pub custody: Option<CustodyArg>,
    /// How long a key is announced before it is used, in operating time of the vehicles
    #[arg(long, value_name = "TIME")]
    pub hold_down: Option<units::Duration>,
    /// Longest life of a statement
    #[arg(long, value_name = "TIME")]
    pub max_validity: Option<units::Duration>,
    /// The time at which it is drafted: seconds since 1970 or RFC 3339
    #[arg(long, hide = true)]
    pub now: Option<Moment>,
}

/// Arguments of `authority root sign`.
#[derive(Debug, Clone, clap::Args)]
pub struct SignArgs {
    /// The draft
    pub draft: PathBuf,
    /// The root before it, as it is known here: shows what changes, and refuses a draft that does not follow it
    #[arg(long, value_name = "ROOT")]
    pub previous: Option<PathBuf>,
    /// Who signs it
    #[command(flatten)]
    pub holder: HolderArgs,
}

/// Arguments of `authority root accept`.
#[derive(Debug, Clone, clap::Args)]
pub struct AcceptArgs {
    /// The authority's folder
    #[arg(long, value_name = "DIR")]
    pub dir: PathBuf,
    /// What `root sign` wrote, from each signer
    #[arg(required = true)]
    pub signatures: Vec<PathBuf>,
    /// The time by which devices judge it: seconds since 1970 or RFC 3339
    #[arg(long, hide = true)]
    pub now: Option<Moment>,
}

/// Who can cause a statement's signature.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum CustodyArg {
    /// A token that is kept offline
    OfflineToken,
    /// A key in a cloud provider's HSM
    CloudHsm,
    /// A file: whoever reads the file
    KeyFile,
}

/// `LABEL=FILE` or `LABEL=kms:ARN`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RoleKeyArg {
    /// For people: who holds it.
    pub label: String,
    /// Where its public key is.
    pub public: PublicHalf,
}

/// Where a public key comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PublicHalf {
    /// A file.
    File(PathBuf),
    /// KMS, which has the private half.
    Kms(KeyArn),
}

impl FromStr for RoleKeyArg {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let form = || "not LABEL=FILE, such as alice=alice.pem.pub".to_owned();
        let (label, place) = text.split_once('=').ok_or_else(form)?;
        if label.is_empty() || place.is_empty() {
            return Err(form());
        }
        let public = match place.strip_prefix("kms:") {
            Some(arn) => PublicHalf::Kms(KeyArn::new(arn).map_err(|error| error.to_string())?),
            None => PublicHalf::File(place.into()),
        };
        Ok(Self { label: label.to_owned(), public })
    }
}

pub(super) async fn run(args: Args) -> Result<String, ProgramError> {
    match args.command {
        Command::NewKey(args) => new_key(&args),
        Command::Draft(args) => draft(&args).await,
        Command::Sign(args) => sign(&args),
        Command::Accept(args) => accept(&args),
    }
}

fn new_key(args: &NewKeyArgs) -> Result<String, ProgramError> {
    let passphrase = args.passphrase_file.as_deref().map(Passphrase::read).transpose()?;
    let algorithm = match args.alg {
        Alg::P256 => Algorithm::Esp256,
        Alg::Ed25519 => Algorithm::Ed25519,
    };
    let mut beside = args.out.clone().into_os_string();
    beside.push(".pub");
    let beside = PathBuf::from(beside);
    if beside.exists() {
        let error = std::io::ErrorKind::AlreadyExists.into();
        return Err(AuthorityError::File { action: "write", path: beside, error }.into());
    }
    let public = authority::new_key_file(&args.out, algorithm, passphrase.as_ref())?;
    authority::write_new(&beside, authority::public_pem(&public)?.as_bytes(), 0o644)?;
    let warning =
        if passphrase.is_some() { "" } else { "WARNING: it is not encrypted (--passphrase-file)\n" };
    Ok(format!(
        "key        {}\npublic     {}\nkid        {}\n{warning}\nnext: give {} to whoever drafts the next root\n",
        args.out.display(),
        beside.display(),
        public.kid(),
        beside.display(),
    ))
}

async fn draft(args: &DraftArgs) -> Result<String, ProgramError> {
    let add_root_keys = args.add_root_key.iter().map(|key| match &key.public {
        PublicHalf::File(path) => role_key(&key.label, path),
        PublicHalf::Kms(_) => Err(AuthorityError::Request(
            "root keys are kept offline: a root draft takes keys in KMS for statements alone",
        )),
    });
    let add_root_keys = add_root_keys.collect::<Result<Vec<_>, _>>()?;
    let (mut statement_keys, mut kms_statement_keys) = (Vec::new(), Vec::new());
    for key in &args.statement_key {
        match &key.public {
            PublicHalf::File(path) => statement_keys.push(role_key(&key.label, path)?),
            PublicHalf::Kms(arn) => {
                let kms = Kms::from_environment(KmsTimeouts::default()).await;
                let spki = kms.signing_key(arn).await.map_err(AuthorityError::Kms)?;
                kms_statement_keys.push(RootKey { spki, label: key.label.clone() });
            }
        }
    }
    let out_of_files: Vec<String> = statement_keys.iter().map(|key| key.label.clone()).collect();
    let dir = AuthorityDir::open(&args.dir)?;
    let change = RootChange {
        life: args.life.map(units::Duration::get),
        add_root_keys,
        remove_root_keys: args.remove_root_key.iter().map(|text| kid(text)).collect::<Result<_, _>>()?,
        root_threshold: args.root_threshold,
        statement_keys,
        kms_statement_keys,
        deny: args.deny.iter().map(|text| fingerprint(text)).collect::<Result<_, _>>()?,
        raise_epoch: args.raise_epoch,
        custody: args.custody.map(|custody| match custody {
            CustodyArg::OfflineToken => Custody::OfflineToken,
            CustodyArg::CloudHsm => Custody::CloudHsm,
            CustodyArg::KeyFile => Custody::KeyFile,
        }),
        hold_down: args.hold_down.map(units::Duration::get),
        max_statement_validity: args.max_validity.map(units::Duration::get),
    };
    let draft = authority::draft(&dir, &change, now_or(args.now))?;
    authority::write_new(&args.out, &draft.payload, 0o644)?;
    let out = args.out.display();
    let mut text = described(&draft);
    if draft.fields.policy.custody == Some(Custody::CloudHsm) {
        for label in out_of_files {
            let _ = writeln!(
                text,
                "WARNING      the draft says cloud HSM, and the public key of {label:?} comes out of a file: nobody has asked the HSM. \
                 LABEL=kms:ARN asks it"
            );
        }
    }
    let _ = writeln!(
        text,
        "\nnext: on the machine of each signer, of the old root's threshold and of the new one's:\n  \
         pithead-decryptor authority root sign {out} --key ROOT.pem --fingerprint {} --out NAME.signed\n\
         and here: pithead-decryptor authority root accept --dir {} *.signed",
        draft.digest,
        args.dir.display()
    );
    Ok(text)
}

fn sign(args: &SignArgs) -> Result<String, ProgramError> {
    let draft = authority::read_draft(&read(&args.draft)?)?;
    let mut text = described(&draft);
    if let Some(previous) = &args.previous {
        let object = read(previous)?;
        let known =
            verify::first_root(&draft.fields.authority, &object).map_err(AuthorityError::RootRefused)?;
        if *known.digest() != draft.fields.previous || draft.fields.version != known.version + 1 {
            return Err(AuthorityError::Request(
                "the draft does not follow the root of --previous: ask for the roots between, and read each",
            )
            .into());
        }
        let _ = write!(text, "\nagainst      root version {}, {}\n", known.version, known.digest());
        text.push_str(&changes(known.fields(), &draft.fields));
    }
    let whose = |kid: &Kid| {
        draft.fields.key(kid).map_or_else(
            || "a key that the new root does not list: it counts for the old root alone".to_owned(),
            |key| key.label.clone(),
        )
    };
    text += &args.holder.sign(&draft.digest, |key| authority::sign(&draft, key), whose)?;
    Ok(text)
}

fn accept(args: &AcceptArgs) -> Result<String, ProgramError> {
    let dir = AuthorityDir::open(&args.dir)?;
    let signed: Vec<Bytes> = args.signatures.iter().map(|path| read(path)).collect::<Result<_, _>>()?;
    let accepted = authority::accept(&dir, &signed, now_or(args.now))?;
    let root = &accepted.root;
    let mut text = format!(
        "root         version {}, epoch {}, in force\nfingerprint  {}\nexpires      {}\n",
        root.version,
        root.epoch,
        root.digest(),
        authority::rfc3339(root.expires_at)
    );
    let sites: Vec<&str> = accepted.sites.iter().map(Site::as_str).collect();
    if !sites.is_empty() {
        let _ = writeln!(
            text,
            "\nnext: sign the next statement of {}, which carries it to the site:\n  \
             pithead-decryptor authority statement --dir {} --site SITE{}{}",
            sites.join(", "),
            args.dir.display(),
            if root.policy.custody == Some(Custody::CloudHsm) { " --statement-kms-key ARN" } else { "" },
            if accepted.raised_epoch { " --cosign ROOT.pem ... (the threshold of root keys)" } else { "" }
        );
    }
    if accepted.raised_epoch {
        let _ = writeln!(
            text,
            "and provision vehicles with roots/{}.cose from now on: one that begins with an older root believes only\n\
             statements that the root keys have signed as well",
            root.version
        );
    }
    Ok(text)
}

/// What a draft says, for the one who is asked to sign it.
fn described(draft: &RootDraft) -> String {
    let RootFields { authority, version, epoch, policy, .. } = &draft.fields;
    let mut text = format!(
        "root         version {version}, epoch {epoch}, of {authority}\nfingerprint  {}\nafter        {}\n\
         issued       {}\nexpires      {}\n",
        draft.digest,
        draft.fields.previous,
        authority::rfc3339(draft.fields.issued_at),
        authority::rfc3339(draft.fields.expires_at),
    );
    let mut role = |name: &str, role: &Role| {
        let _ = writeln!(text, "{name:<12} {} of {}", role.threshold, role.kids.len());
        for kid in &role.kids {
            let label = draft.fields.key(kid).map_or("", |key| key.label.as_str());
            let _ = writeln!(text, "             {kid} {label:?}");
        }
    };
    role("root keys", &draft.fields.root_role);
    role("statements", &draft.fields.statement_role);
    for fingerprint in &draft.fields.denylist {
        let _ = writeln!(text, "denied       {fingerprint}");
    }
    let custody = authority::custody_name(policy.custody);
    let _ = writeln!(
        text,
        "policy       hold-down {} s, RSA from {} bits, suites {:?}, statements up to {} s, custody: {custody}",
        policy.hold_down_s, policy.min_rsa_bits, policy.suites, policy.max_statement_validity_s
    );
    if let Some(pins) = &draft.fields.gateways {
        for ca in &pins.ca_der {
            let _ = writeln!(text, "gateway CA   {}", Sha256Digest::of(ca));
        }
        for spki in &pins.spki_sha256 {
            let _ = writeln!(text, "gateway key  {spki}");
        }
    }
    let roles = [&draft.fields.root_role, &draft.fields.statement_role];
    for key in &draft.fields.keys {
        let kid = key.spki.kid();
        if !roles.iter().any(|role| role.kids.contains(&kid)) {
            let _ = writeln!(text, "no role      {kid} {:?}", key.label);
        }
    }
    text
}

fn role_key(label: &str, file: &Path) -> Result<RootKey, AuthorityError> {
    let wrong = |what| AuthorityError::KeyFile { path: file.into(), what };
    let content = read(file)?;
    if content.len() > 16 * MAX_SPKI {
        return Err(wrong("longer than any public key"));
    }
    let spki = RoleSpki::from_der(&super::der_of(&content).map_err(wrong)?);
    let spki = spki.map_err(|_| wrong("not a P-256 or Ed25519 public key"))?;
    Ok(RootKey { spki, label: label.to_owned() })
}

fn kid(text: &str) -> Result<Kid, AuthorityError> {
    let bytes = hex::decode(text).ok().and_then(|bytes| bytes.try_into().ok());
    bytes
        .map(Kid::from_bytes)
        .ok_or(AuthorityError::Request("a kid is 32 hex digits; `authority show` has them"))
}
