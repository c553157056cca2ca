//! Throw-away certificate authorities, and what they sign.

use std::{
    fs,
    path::{Path, PathBuf},
    time::SystemTime,
};

use anyhow::Context as _;
use pithead_hop::{identity::end_and_serial, tls::Pem};
use rcgen::{
    BasicConstraints, CertificateParams, CertificateRevocationListParams, CertifiedIssuer, DnType,
    ExtendedKeyUsagePurpose, IsCa, KeyIdMethod, KeyPair, KeyUsagePurpose, RevokedCertParams, SanType,
    SerialNumber, date_time_ymd,
};

/// A certificate authority with its key in memory and its certificate in a file.
pub struct Ca {
    issuer: CertifiedIssuer<'static, KeyPair>,
    path: PathBuf,
}

impl std::fmt::Debug for Ca {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Ca").field("path", &self.path).finish_non_exhaustive()
    }
}

/// Where a certificate and its key lie.
#[derive(Clone, Debug)]
pub struct Certificate {
    /// PEM.
    pub certificate: PathBuf,
    /// PEM, PKCS#8.
    pub key: PathBuf,
}

impl Ca {
    /// Makes one and writes its certificate to `path`.
    pub fn create(name: &str, path: &Path) -> anyhow::Result<Self> {
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let issuer = CertifiedIssuer::self_signed(params, KeyPair::generate()?)?;
        fs::write(path, issuer.pem()).with_context(|| path.display().to_string())?;
        Ok(Self { issuer, path: path.to_owned() })
    }

    /// Its certificate, PEM.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Its private key, PEM: for a gateway that signs devices itself.
    #[must_use]
    pub fn key_pem(&self) -> String {
        self.issuer.key().serialize_pem()
    }

    /// A revocation list, PEM, of the certificates in these files. It is long past its `nextUpdate`, as at a site that was cut
    /// off for months.
    pub fn crl(&self, revoked: &[&Certificate]) -> anyhow::Result<String> {
        self.crl_until(revoked, 2022)
    }

    /// The same with its `nextUpdate` at the beginning of `year`.
    pub fn crl_until(&self, revoked: &[&Certificate], year: i32) -> anyhow::Result<String> {
        let revoked_certs = revoked.iter().map(|files| {
            let leaf = Pem::read(&files.certificate)?.certificates()?;
            let (_, serial) = end_and_serial(leaf.first().context("a certificate")?)?;
            Ok(RevokedCertParams {
                serial_number: SerialNumber::from(hex::decode(serial)?),
                revocation_time: date_time_ymd(2021, 1, 1),
                reason_code: None,
                invalidity_date: None,
            })
        });
        let params = CertificateRevocationListParams {
            this_update: date_time_ymd(2021, 1, 1),
            next_update: date_time_ymd(year, 1, 1),
            crl_number: SerialNumber::from_slice(&[1]),
            issuing_distribution_point: None,
            revoked_certs: revoked_certs.collect::<anyhow::Result<_>>()?,
            key_identifier_method: KeyIdMethod::Sha256,
        };
        Ok(params.signed_by(&self.issuer)?.pem()?)
    }

    /// Signs a certificate for a server on loopback, with a SPIFFE name besides if one is given. `stem` is the path of
    /// the files to be written, without `.pem` and `.key`.
    pub fn server(&self, spiffe: Option<&str>, stem: &Path) -> anyhow::Result<Certificate> {
        let mut names =
            vec![SanType::IpAddress([127, 0, 0, 1].into()), SanType::DnsName("localhost".try_into()?)];
        if let Some(uri) = spiffe {
            names.push(SanType::URI(uri.try_into()?));
        }
        self.issue(names, date_time_ymd(2100, 1, 1).into(), stem)
    }

    /// Signs a certificate that names its holder, such as `spiffe://pit-7/device/truck-1`.
    pub fn client(&self, spiffe: &str, stem: &Path) -> anyhow::Result<Certificate> {
        self.client_until(spiffe, date_time_ymd(2100, 1, 1).into(), stem)
    }

    /// The same, good until then.
    pub fn client_until(&self, spiffe: &str, until: SystemTime, stem: &Path) -> anyhow::Result<Certificate> {
        self.issue(vec![SanType::URI(spiffe.try_into()?)], until, stem)
    }

    fn issue(&self, names: Vec<SanType>, until: SystemTime, stem: &Path) -> anyhow::Result<Certificate> {
        let mut params = CertificateParams::default();
        params.subject_alt_names = names;
        params.not_before = date_time_ymd(2020, 1, 1);
        params.not_after = until.into();
        params.extended_key_usages =
            vec![ExtendedKeyUsagePurpose::ClientAuth, ExtendedKeyUsagePurpose::ServerAuth];
        let pair = KeyPair::generate()?;
        let certificate = params.signed_by(&pair, &self.issuer)?;
        let files = Certificate { certificate: stem.with_extension("pem"), key: stem.with_extension("key") };
        fs::write(&files.certificate, certificate.pem()).with_context(|| stem.display().to_string())?;
        fs::write(&files.key, pair.serialize_pem())?;
        Ok(files)
    }
}
