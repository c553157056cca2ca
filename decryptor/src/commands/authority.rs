//! `authority init | statement | rotate | revoke | cosign | accept | root | export | show`: the authority at work.

mod changes;
mod cosign;
mod holder;
mod root;

use std::borrow::Cow;
use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use pithead_hop::program::{ProgramError, clock, units};
use pithead_proto::errors::v1::ErrorReason;
use pithead_sealing::Site;
use pithead_sealing::trust::{Algorithm, Custody, KeyArn, KeyStatus, MAX_SPKI, Root, RsaSpki, UnixTime};
use rustls_pki_types::SubjectPublicKeyInfoDer;
use rustls_pki_types::pem::PemObject as _;

use crate::authority::{
    self, AuthorityDir, AuthorityError, Folder, InitOptions, KeyPlace, OfferedKey, Overview, Passphrase,
    StatementRequest, StatementSigner,
};
use crate::kms::{Kms, KmsTimeouts};

/// Arguments of `authority`.
#[derive(Debug, Clone, clap::Args)]
pub struct Args {
    /// What to do
    #[command(subcommand)]
    pub command: Command,
}

/// `authority ...`
#[derive(Debug, Clone, clap::Subcommand)]
pub enum Command {
    /// Make the root keys, a statement key, and the first trust root
    Init(InitArgs),
    /// Sign the next key statement of a site, and write the bundle that gateways are given
    Statement(StatementArgs),
    /// Have devices seal to the key that stands by, and retire the one before
    Rotate(RotateArgs),
    /// Have devices never again seal to a key, although its last statement has not expired
    Revoke(RevokeArgs),
    /// Show what a drafted statement says, and sign it with a root key of this machine
    Cosign(cosign::CosignArgs),
    /// Bring the root keys' signatures on a drafted statement together, and issue it
    Accept(cosign::AcceptArgs),
    /// Make the next trust root: other keys, another threshold, another life, a raised epoch
    Root(root::Args),
    /// Write what a site is given by hand: its bundle, and the root that devices and gateways begin with
    Export(ExportArgs),
    /// Show the root in force and each site's last statement, verified
    Show(ShowArgs),
}

/// How keys sign.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Alg {
    /// ECDSA on P-256 with SHA-256
    P256,
    /// Ed25519
    Ed25519,
}

/// Where a key stands in its life.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Status {
    /// Announced
    Next,
    /// Sealed to
    Active,
}

/// How an answer is printed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Output {
    /// For people
    Table,
    /// For programs
    Json,
}

/// Arguments of `authority init`.
#[derive(Debug, Clone, clap::Args)]
pub struct InitArgs {
    /// The authority's folder; made if it is not there
    #[arg(long, value_name = "DIR")]
    pub dir: PathBuf,
    /// Its name for ever, such as acme-mining/prod
    #[arg(long, value_name = "NAME")]
    pub authority: String,
    /// How many root keys
    #[arg(long, value_name = "N", default_value_t = 2)]
    pub root_keys: usize,
    /// How many of them must sign a root
    #[arg(long, value_name = "N", default_value_t = 2)]
    pub root_threshold: usize,
    /// How keys sign
    #[arg(long, value_enum, default_value_t = Alg::P256)]
    pub alg: Alg,
    /// How long a key is announced before it is used, in operating time of the vehicles
    #[arg(long, value_name = "TIME", default_value = "3d")]
    pub hold_down: units::Duration,
    /// Shortest RSA key that devices seal to: 2048, 3072 or 4096
    #[arg(long, value_name = "BITS", default_value_t = 3072)]
    pub min_rsa_bits: u64,
    /// How long the root authorises statements
    #[arg(long, value_name = "TIME", default_value = "730d")]
    pub root_life: units::Duration,
    /// Longest life of a statement
    #[arg(long, value_name = "TIME", default_value = "400d")]
    pub max_validity: units::Duration,
    /// Encrypt the root keys under the first line of this file
    #[arg(long, value_name = "FILE")]
    pub root_passphrase_file: Option<PathBuf>,
    /// The key in KMS that signs statements (ECC_NIST_P256, SIGN_VERIFY); without it one is made in a file
    #[arg(long, value_name = "ARN")]
    pub statement_kms_key: Option<KeyArn>,
    /// The time at which it is made: seconds since 1970 or RFC 3339
    #[arg(long, hide = true)]
    pub now: Option<Moment>,
}

/// Arguments of `authority statement`.
#[derive(Debug, Clone, clap::Args)]
pub struct StatementArgs {
    /// The authority's folder
    #[arg(long, value_name = "DIR")]
    pub dir: PathBuf,
    /// Whom it is for; may be given several times
    #[arg(long = "site", value_name = "SITE", required = true)]
    pub sites: Vec<Site>,
    /// List this key, with its public key in PEM or DER; the file may be left out for a key that is listed already
    #[arg(long = "key", value_name = "ARN[=SPKI]")]
    pub keys: Vec<KeyArg>,
    /// List this key, and fetch its public key from KMS
    #[arg(long = "kms-key", value_name = "ARN")]
    pub kms_keys: Vec<KeyArn>,
    /// What the keys of --key and --kms-key are
    #[arg(long, value_enum, default_value_t = Status::Active)]
    pub status: Status,
    /// List this key as next: the one that stands by
    #[arg(long = "next-key", value_name = "ARN[=SPKI]")]
    pub next_keys: Vec<KeyArg>,
    /// List this key as next, and fetch its public key from KMS
    #[arg(long = "kms-next-key", value_name = "ARN")]
    pub kms_next_keys: Vec<KeyArn>,
    /// Seal to this key no more; it still decrypts
    #[arg(long, value_name = "ARN")]
    pub retire: Vec<KeyArn>,
    /// Sign although no key stands by for the active one
    #[arg(long)]
    pub no_standby: bool,
    /// How long retired keys stay able to decrypt: seconds since 1970 or RFC 3339
    #[arg(long, value_name = "WHEN")]
    pub decrypt_until: Option<Moment>,
    /// Who signs it, and where it goes
    #[command(flatten)]
    pub signing: SigningArgs,
}

/// What every statement is signed with.
#[derive(Debug, Clone, clap::Args)]
pub struct SigningArgs {
    /// How long the statement is valid: 180d unless the root ends earlier
    #[arg(long, value_name = "TIME")]
    pub validity: Option<units::Duration>,
    /// The change request behind it
    #[arg(long, value_name = "TEXT")]
    pub ticket: Option<String>,
    /// Write the bundle here as well (one site)
    #[arg(long, value_name = "FILE")]
    pub out: Option<PathBuf>,
    /// Who signs for the statement role
    #[command(flatten)]
    pub key: StatementKeyArgs,
    /// Sign nothing: write a draft here, which root keys sign on machines of their own (`authority cosign`) before it is accepted
    #[arg(long, value_name = "FILE", conflicts_with_all = ["out", "cosign", "epoch_followed", "cosigned_followed", "statement_key", "statement_kms_key"])]
    pub draft: Option<PathBuf>,
    /// A root key that signs as well; may be given several times. After a raised epoch a device believes no statement without the
    /// threshold of them until it has taken one with it; and one that has it needs no announcement
    #[arg(long, value_name = "PEM[=PASSPHRASE-FILE]")]
    pub cosign: Vec<SecretKeyArg>,
    /// After a raised epoch: every vehicle has taken a statement of it, and new ones begin with a root of it, so that the root keys
    /// are needed no more
    #[arg(long)]
    pub epoch_followed: bool,
    /// Every vehicle has taken the last statement that the root keys signed as well: sign this one without them
    #[arg(long)]
    pub cosigned_followed: bool,
    /// The time at which it is signed: seconds since 1970 or RFC 3339
    #[arg(long, hide = true)]
    pub now: Option<Moment>,
}

/// The key of the statement role.
#[derive(Debug, Clone, clap::Args)]
pub struct StatementKeyArgs {
    /// The statement key, if it is not DIR/keys/statement-1.pem
    #[arg(long, value_name = "PEM")]
    pub statement_key: Option<PathBuf>,
    /// The first line of this file opens the statement key
    #[arg(long, value_name = "FILE")]
    pub statement_passphrase_file: Option<PathBuf>,
    /// The statement key in KMS
    #[arg(long, value_name = "ARN", conflicts_with_all = ["statement_key", "statement_passphrase_file"])]
    pub statement_kms_key: Option<KeyArn>,
}

impl StatementKeyArgs {
    async fn open(&self, dir: &AuthorityDir) -> Result<Box<dyn StatementSigner>, AuthorityError> {
        let place = match (&self.statement_kms_key, &self.statement_key) {
            (Some(arn), _) => {
                let kms = Kms::from_environment(KmsTimeouts::default()).await;
                KeyPlace::Kms { kms, arn: arn.clone() }
            }
            (None, Some(path)) => {
                KeyPlace::File { path: path.clone(), passphrase_file: self.statement_passphrase_file.clone() }
            }
            (None, None) => {
                let in_hsm = |root: &Root| root.policy.custody == Some(Custody::CloudHsm);
                if dir.roots()?.last().is_some_and(in_hsm) {
                    return Err(AuthorityError::Request(
                        "the root says that statements are signed in a cloud HSM: give --statement-kms-key ARN",
                    ));
                }
                KeyPlace::File {
                    path: dir.key_path("statement-1"),
                    passphrase_file: self.statement_passphrase_file.clone(),
                }
            }
        };
        place.open().await
    }
}

/// The key that stands by for the active one.
#[derive(Debug, Clone, clap::Args)]
pub struct StandbyArgs {
    /// The key that stands by from now on, with its public key in PEM or DER
    #[arg(long = "next-key", value_name = "ARN[=SPKI]")]
    pub next_keys: Vec<KeyArg>,
    /// The key that stands by from now on, its public key fetched from KMS
    #[arg(long = "kms-next-key", value_name = "ARN")]
    pub kms_next_keys: Vec<KeyArn>,
    /// Sign although no key stands by after it
    #[arg(long)]
    pub no_standby: bool,
}

/// Arguments of `authority rotate`.
#[derive(Debug, Clone, clap::Args)]
pub struct RotateArgs {
    /// The authority's folder
    #[arg(long, value_name = "DIR")]
    pub dir: PathBuf,
    /// Whom it is for; may be given several times
    #[arg(long = "site", value_name = "SITE", required = true)]
    pub sites: Vec<Site>,
    /// The key that becomes active, where several stand by
    #[arg(long, value_name = "ARN")]
    pub to: Option<KeyArn>,
    /// Ask KMS first whether that key can still be used
    #[arg(long)]
    pub kms: bool,
    /// Leave the key before active beside the new one, for vehicles that sleep past the end of their statement; retire it when
    /// they are awake: statement --retire ARN
    #[arg(long)]
    pub keep_old: bool,
    /// What stands by after it
    #[command(flatten)]
    pub standby: StandbyArgs,
    /// Who signs it, and where it goes
    #[command(flatten)]
    pub signing: SigningArgs,
}

/// Arguments of `authority revoke`.
#[derive(Debug, Clone, clap::Args)]
pub struct RevokeArgs {
    /// The key
    pub arn: KeyArn,
    /// The authority's folder
    #[arg(long, value_name = "DIR")]
    pub dir: PathBuf,
    /// Whom it is for; may be given several times
    #[arg(long = "site", value_name = "SITE", required = true)]
    pub sites: Vec<Site>,
    /// Why, for people; it stands in the statement
    #[arg(long, value_name = "TEXT")]
    pub reason: String,
    /// The key that takes its place, announced for long enough; with its public key and --cosign also one that was not
    #[arg(long, value_name = "ARN[=SPKI]")]
    pub to: Vec<KeyArg>,
    /// The same, its public key fetched from KMS
    #[arg(long = "kms-to", value_name = "ARN")]
    pub kms_to: Vec<KeyArn>,
    /// What stands by after it
    #[command(flatten)]
    pub standby: StandbyArgs,
    /// Who signs it, and where it goes
    #[command(flatten)]
    pub signing: SigningArgs,
}

/// Arguments of `authority export`.
#[derive(Debug, Clone, clap::Args)]
pub struct ExportArgs {
    /// The authority's folder
    #[arg(long, value_name = "DIR")]
    pub dir: PathBuf,
    /// Whose bundle
    #[arg(long, value_name = "SITE")]
    pub site: Site,
    /// Where the bundle goes
    #[arg(long, value_name = "FILE")]
    pub out: PathBuf,
    /// Where the root goes that devices and gateways are provisioned with; another one that is there is not written over
    #[arg(long, value_name = "FILE")]
    pub root_out: Option<PathBuf>,
}

/// Arguments of `authority show`.
#[derive(Debug, Clone, clap::Args)]
pub struct ShowArgs {
    /// The authority's folder
    #[arg(long, value_name = "DIR")]
    pub dir: PathBuf,
    /// How it is printed
    #[arg(short, long, value_enum, default_value_t = Output::Table)]
    pub output: Output,
    /// The time by which statements are called stale or expired
    #[arg(long, hide = true)]
    pub now: Option<Moment>,
}

/// A point in time on the command line: seconds since 1970, or RFC 3339.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Moment(pub UnixTime);

impl FromStr for Moment {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Moment, Self::Err> {
        if let Ok(seconds) = text.parse() {
            return Ok(Moment(UnixTime(seconds)));
        }
        let format = &time::format_description::well_known::Rfc3339;
        let moment = time::OffsetDateTime::parse(text, format)
            .map_err(|_| "neither seconds since 1970 nor RFC 3339, such as 2027-01-31T00:00:00Z")?;
        u64::try_from(moment.unix_timestamp()).map(UnixTime).map(Moment).map_err(|_| "before 1970")
    }
}

/// `PEM` or `PEM=PASSPHRASE-FILE`: root keys have holders, and each a passphrase of his own.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SecretKeyArg {
    /// The key.
    pub file: PathBuf,
    /// Its first line opens it.
    pub passphrase_file: Option<PathBuf>,
}

impl FromStr for SecretKeyArg {
    type Err = std::convert::Infallible;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (file, passphrase_file) = match text.split_once('=') {
            Some((file, passphrase)) => (file, Some(passphrase.into())),
            None => (text, None),
        };
        Ok(Self { file: file.into(), passphrase_file })
    }
}

/// `ARN` or `ARN=FILE`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KeyArg {
    /// The key.
    pub arn: KeyArn,
    /// Where its public key is.
    pub spki: Option<PathBuf>,
}

impl FromStr for KeyArg {
    type Err = pithead_sealing::trust::ArnError;

    fn from_str(text: &str) -> Result<KeyArg, Self::Err> {
        let (arn, file) = match text.split_once('=') {
            Some((arn, file)) => (arn, Some(file.into())),
            None => (text, None),
        };
        Ok(KeyArg { arn: KeyArn::new(arn)?, spki: file })
    }
}

fn now_or(given: Option<Moment>) -> UnixTime {
    given.map_or_else(|| UnixTime(clock::wall_s()), |Moment(at)| at)
}

/// Runs it.
///
/// # Errors
/// What the authority refuses, for the person in front of it.
#[allow(clippy::print_stdout, reason = "the answer of a command")]
pub async fn run(args: Args) -> Result<(), ProgramError> {
    match args.command {
        Command::Init(args) => print!("{}", init(&args).await?),
        Command::Statement(args) => print!("{}", statement(&args).await?),
        Command::Rotate(args) => print!("{}", rotate(&args).await?),
        Command::Revoke(args) => print!("{}", revoke(&args).await?),
        Command::Cosign(args) => print!("{}", cosign::cosign(&args)?),
        Command::Accept(args) => print!("{}", cosign::accept(&args).await?),
        Command::Root(args) => print!("{}", root::run(args).await?),
        Command::Export(args) => print!("{}", export(&args)?),
        Command::Show(args) => print!("{}", show(&args)?),
    }
    Ok(())
}

async fn init(args: &InitArgs) -> Result<String, ProgramError> {
    let kms_statement_key = match &args.statement_kms_key {
        None => None,
        Some(arn) => {
            let kms = Kms::from_environment(KmsTimeouts::default()).await;
            Some((arn.clone(), kms.signing_key(arn).await.map_err(AuthorityError::Kms)?))
        }
    };
    let root_passphrase = args.root_passphrase_file.as_deref().map(Passphrase::read).transpose()?;
    let encrypted = root_passphrase.is_some();
    let options = InitOptions {
        authority: args.authority.clone(),
        root_keys: args.root_keys,
        root_threshold: args.root_threshold,
        algorithm: match args.alg {
            Alg::P256 => Algorithm::Esp256,
            Alg::Ed25519 => Algorithm::Ed25519,
        },
        hold_down: args.hold_down.get(),
        min_rsa_bits: args.min_rsa_bits,
        root_life: args.root_life.get(),
        max_statement_validity: args.max_validity.get(),
        root_passphrase,
        kms_statement_key,
    };
    let root = authority::init(&args.dir, &options, now_or(args.now))?;
    let dir = args.dir.display();
    let move_them = if encrypted {
        "The root keys are encrypted. Move them off this machine all the same:"
    } else {
        "WARNING: THE ROOT KEYS LIE HERE UNENCRYPTED. Whoever reads them is the authority. Move them off this\n\
         machine now, to media in different hands (and next time give --root-passphrase-file):"
    };
    let keys = (1..=args.root_keys).map(|n| format!("  {dir}/keys/root-{n}.pem\n")).collect::<String>();
    let (statement_key, with_it) = match &args.statement_kms_key {
        Some(arn) => (format!("Statements are signed by {arn}."), format!(" --statement-kms-key {arn}")),
        None => (
            format!("The statement key {dir}/keys/statement-1.pem stays with whoever signs statements."),
            String::new(),
        ),
    };
    Ok(format!(
        "authority    {}\nroot         version 1, {} of {} keys, custody: {}\n\
         fingerprint  {}\nexpires      {}\n\n{move_them}\n{keys}{statement_key}\n\n\
         next: pithead-decryptor authority statement --dir {dir} --site SITE --kms-key ARN --kms-next-key ARN{with_it}\n",
        root.authority,
        root.root_role.threshold,
        root.root_role.kids.len(),
        authority::custody_name(root.policy.custody),
        root.digest(),
        authority::rfc3339(root.expires_at),
    ))
}

async fn statement(args: &StatementArgs) -> Result<String, ProgramError> {
    let status = match args.status {
        Status::Next => KeyStatus::Next,
        Status::Active => KeyStatus::Active,
    };
    let listed = offered(&args.keys, &args.kms_keys, status).await?;
    let next = offered(&args.next_keys, &args.kms_next_keys, KeyStatus::Next).await?;
    let dir = AuthorityDir::open(&args.dir)?;
    let request = StatementRequest {
        keys: [listed, next].concat(),
        retire: args.retire.clone(),
        no_standby: args.no_standby,
        decrypt_until: args.decrypt_until.map(|Moment(at)| at),
        ..StatementRequest::to(args.sites.clone())
    };
    issue(&dir, request, &args.signing).await
}

async fn rotate(args: &RotateArgs) -> Result<String, ProgramError> {
    let next = args.standby.keys().await?;
    let dir = AuthorityDir::open(&args.dir)?;
    let (mut activated, before) = authority::rotation(&dir, &args.sites, args.to.as_ref())?;
    let retire = if args.keep_old { Vec::new() } else { before };
    if args.kms {
        let asked = offered(&[], std::slice::from_ref(&activated.arn), KeyStatus::Active).await?;
        activated.spki = asked.into_iter().next().and_then(|key| key.spki);
    }
    let request = StatementRequest {
        keys: [vec![activated], next].concat(),
        retire,
        no_standby: args.standby.no_standby,
        ..StatementRequest::to(args.sites.clone())
    };
    issue(&dir, request, &args.signing).await
}

async fn revoke(args: &RevokeArgs) -> Result<String, ProgramError> {
    let successor = offered(&args.to, &args.kms_to, KeyStatus::Active).await?;
    let next = args.standby.keys().await?;
    let dir = AuthorityDir::open(&args.dir)?;
    let request = StatementRequest {
        keys: [successor, next].concat(),
        revoke: vec![(args.arn.clone(), Some(args.reason.clone()))],
        no_standby: args.standby.no_standby,
        ..StatementRequest::to(args.sites.clone())
    };
    let mut text = issue(&dir, request, &args.signing).await?;
    if args.signing.draft.is_some() {
        return Ok(text);
    }
    // A stolen key is stolen everywhere.
    let overview = authority::overview(&dir, now_or(args.signing.now))?;
    let lists = |site: &&authority::SiteView| {
        site.keys.iter().any(|key| key.arn == args.arn.as_str() && key.status != "revoked")
    };
    for site in overview.sites.iter().filter(lists) {
        text += &format!("WARNING      site {} still seals to it: revoke it there as well\n", site.site);
    }
    Ok(text)
}

async fn issue(
    dir: &AuthorityDir,
    mut request: StatementRequest,
    signing: &SigningArgs,
) -> Result<String, ProgramError> {
    if signing.out.is_some() && request.sites.len() > 1 {
        return Err(AuthorityError::Request(
            "--out takes the bundle of one site; see DIR/bundles for the others",
        )
        .into());
    }
    request.ticket.clone_from(&signing.ticket);
    request.epoch_followed = signing.epoch_followed;
    request.cosigned_followed = signing.cosigned_followed;
    request.validity = signing.validity.map(units::Duration::get);
    if let Some(out) = &signing.draft {
        return cosign::draft(dir, &request, out, now_or(signing.now));
    }
    let signer = signing.key.open(dir).await?;
    let cosigner = |key: &SecretKeyArg| {
        let passphrase = key.passphrase_file.as_deref().map(Passphrase::read).transpose()?;
        authority::read_signing_key(&key.file, passphrase.as_ref())
    };
    let cosigners = signing.cosign.iter().map(cosigner).collect::<Result<Vec<_>, _>>()?;
    let issued = authority::issue(dir, signer.as_ref(), &cosigners, &request, now_or(signing.now)).await?;
    let site = &request.sites[0];
    if let Some(out) = &signing.out {
        authority::copy_bundle(dir, site, out)?;
    }
    let bundle = signing.out.clone().unwrap_or_else(|| dir.bundle_path(site));
    Ok(describe(&issued, signer.as_ref(), &bundle))
}

fn describe(issued: &authority::Issued, signer: &dyn StatementSigner, bundle: &Path) -> String {
    use fmt::Write as _;
    let statement = &issued.statement;
    let mut text = String::new();
    let sites: Vec<&str> = statement.sites.iter().map(Site::as_str).collect();
    // Writing to a String does not fail.
    let _ = write!(
        text,
        "statement    sequence {}, epoch {}, for {}\nfingerprint  {}  (of the key that devices seal to)\n\
         digest       {}\nsigned by    {}\nstale        {}\nexpires      {}\n",
        statement.sequence,
        statement.epoch,
        sites.join(", "),
        issued.in_force.fingerprint(),
        statement.digest(),
        signer.public().kid(),
        authority::rfc3339(statement.refresh_by),
        authority::rfc3339(statement.expires_at),
    );
    for key in &statement.keys {
        let key = authority::KeyView::of(key);
        let _ = writeln!(text, "key          {:<8} {} ({} bits)", key.status, key.arn, key.bits);
    }
    for arn in &issued.not_yet_usable {
        let _ = writeln!(
            text,
            "note         {arn} is active and not announced for long enough yet: devices wait"
        );
    }
    let _ = writeln!(
        text,
        "\nnext: give {} to the decryptor ([keys] bundles), or to a site by hand",
        bundle.display()
    );
    text
}

impl StandbyArgs {
    async fn keys(&self) -> Result<Vec<OfferedKey>, ProgramError> {
        offered(&self.next_keys, &self.kms_next_keys, KeyStatus::Next).await
    }
}

/// The keys of a command line under one status, their public halves out of files or from KMS.
async fn offered(
    files: &[KeyArg],
    kms_arns: &[KeyArn],
    status: KeyStatus,
) -> Result<Vec<OfferedKey>, ProgramError> {
    let mut offered = Vec::new();
    for key in files {
        let spki = key.spki.as_deref().map(read_spki).transpose()?;
        offered.push(OfferedKey { arn: key.arn.clone(), spki, status });
    }
    if !kms_arns.is_empty() {
        let kms = Kms::from_environment(KmsTimeouts::default()).await;
        for arn in kms_arns {
            let spki = kms.sealing_key(arn).await.map_err(AuthorityError::Kms)?;
            offered.push(OfferedKey { arn: arn.clone(), spki: Some(spki), status });
        }
    }
    Ok(offered)
}

/// The DER of a public key in DER, or in PEM with BEGIN PUBLIC KEY.
fn der_of(content: &[u8]) -> Result<Cow<'_, [u8]>, &'static str> {
    if content.starts_with(&[0x30]) {
        return Ok(Cow::Borrowed(content));
    }
    let der = SubjectPublicKeyInfoDer::from_pem_slice(content)
        .map_err(|_| "neither PEM with BEGIN PUBLIC KEY nor DER")?;
    Ok(Cow::Owned(der.to_vec()))
}

/// A public key in PEM ("BEGIN PUBLIC KEY") or DER.
fn read_spki(path: &Path) -> Result<RsaSpki, AuthorityError> {
    let wrong = |what| AuthorityError::KeyFile { path: path.into(), what };
    let content = std::fs::read(path).map_err(|error| AuthorityError::File {
        action: "read",
        path: path.into(),
        error,
    })?;
    // PEM of the longest SPKI, with room for comments around it.
    if content.len() > 16 * MAX_SPKI {
        return Err(wrong("longer than any public key"));
    }
    let spki = RsaSpki::from_der(&der_of(&content).map_err(wrong)?);
    spki.map_err(|_| wrong("not a strict RSA public key (SubjectPublicKeyInfo, exponent 65537)"))
}

fn export(args: &ExportArgs) -> Result<String, ProgramError> {
    let export = authority::export(&Folder::open(&args.dir)?, &args.site)?;
    export.write(&args.out, args.root_out.as_deref())?;
    let (statement, root) = (&export.statement, &export.first_root);
    let mut text = format!(
        "bundle       {}\nstatement    sequence {}, epoch {}, for {}\ndigest       {}\nexpires      {}\n",
        args.out.display(),
        statement.sequence,
        statement.epoch,
        args.site,
        statement.digest(),
        authority::rfc3339(statement.expires_at),
    );
    for key in &statement.keys {
        text += &format!(
            "key          {:<8} {}\n             {}\n",
            authority::status_name(key.status),
            key.arn,
            key.fingerprint
        );
    }
    text += &format!(
        "\nroot         version {} of {}\nfingerprint  {}\nsha256sum    {}\n",
        root.version,
        root.authority,
        root.digest(),
        export.root_sha256()
    );
    text += &match &args.root_out {
        Some(out) => format!(
            "\nnext: provision devices and gateways with {}; tell its sha256sum by another way\n",
            out.display()
        ),
        None => "\nnot written; --root-out FILE writes it\n".to_owned(),
    };
    Ok(text)
}

fn show(args: &ShowArgs) -> Result<String, ProgramError> {
    let dir = Folder::open(&args.dir)?;
    let overview = authority::overview(&dir, now_or(args.now))?;
    match args.output {
        Output::Table => Ok(table(&overview)),
        Output::Json => serde_json::to_string_pretty(&overview)
            .map(|json| json + "\n")
            .map_err(|error| ProgramError::new(ErrorReason::Internal, error.to_string())),
    }
}

fn table(overview: &Overview) -> String {
    use fmt::Write as _;
    let mut text = format!(
        "authority  {}\nroot       version {}, epoch {}, {} of {} keys, custody: {}\nroot       {}\nexpires    {}\n",
        overview.authority,
        overview.root_version,
        overview.epoch,
        overview.root_threshold.0,
        overview.root_threshold.1,
        overview.custody,
        overview.root,
        overview.root_expires_at,
    );
    for (role, keys) in [("root key", &overview.root_keys), ("statements", &overview.statement_keys)] {
        for key in keys {
            let _ = writeln!(text, "{role:<10} {} {:?}", key.kid, key.label);
        }
    }
    for site in &overview.sites {
        let _ = writeln!(
            text,
            "\nsite       {}\nstatement  sequence {}, {}\n           {}\nissued     {}\nstale      {}\nexpires    {}",
            site.site,
            site.sequence,
            site.state,
            site.statement,
            site.issued_at,
            site.refresh_by,
            site.expires_at,
        );
        for key in &site.keys {
            let _ =
                writeln!(text, "key        {:<8} {}\n           {}", key.status, key.arn, key.fingerprint);
        }
    }
    text
}
