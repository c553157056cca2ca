//! A whole throw-away site in one folder, with the real programs.
//!
//! ```text
//! device ══TLS══> gateway ══TLS══> link ══TLS══> decryptor ──> sink      KMS, or a private key in a file
//!                                                   └── authority: made with the real tool
//!
//! FOLDER/authority/                 the authority's memory
//! FOLDER/cloud/                     decryptor.toml, certificates, data/, out.jsonl or out/, private.pem
//! FOLDER/gateway/                   gateway.toml, certificates, root.cose, data/
//! FOLDER/devices/<name>/            device.toml, certificate, trust, outbox
//! FOLDER/*.log                      what the programs said
//! ```

use std::{
    fmt::Write as _,
    fs,
    net::SocketAddr,
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::Context as _;
use pithead_sealing::trust::UnixTime;

use crate::{
    authority::{AUTHORITY, Authority, now},
    binaries::Binaries,
    certificates::{Ca, Certificate},
    command,
    device::Device,
    kms::{KmsKey, TestKms},
    ledger::Delivered,
    link::Link,
    program::{Program, free_address},
};

/// The site's name.
pub const SITE: &str = "pit-7";
/// The gateway's name.
pub const GATEWAY: &str = "edge-1";
/// The ARN under which every statement names the data key.
pub const KEY_ARN: &str = "arn:aws:kms:ap-southeast-2:111122223333:key/1234abcd-12ab-34cd-56ef-1234567890ab";
/// The ARN of the key that stands by.
pub const NEXT_KEY_ARN: &str =
    "arn:aws:kms:ap-southeast-2:111122223333:key/5678abcd-12ab-34cd-56ef-1234567890ab";

/// Who holds the private key that opens.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Custody {
    /// The decryptor, in a file.
    #[default]
    Local,
    /// The test KMS.
    Kms,
}

/// Where the decryptor puts plaintext.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum SinkKind {
    /// One line per record.
    #[default]
    Jsonl,
    /// One file per envelope.
    Folder,
}

/// Where the gateway gets its statements.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum KeySource {
    /// The decryptor's key service, over the link.
    #[default]
    Upstream,
    /// A file that is carried in: `gateway/bundle.pb`.
    Bundle,
}

/// What a site is made of.
#[derive(Clone, Debug)]
pub struct SiteOptions {
    /// Who holds the private key.
    pub custody: Custody,
    /// Where plaintext goes.
    pub sink: SinkKind,
    /// Where the gateway gets its statements.
    pub keys: KeySource,
    /// The gateway compares public keys with KMS.
    pub gateway_asks_kms: bool,
    /// Bits of the data key.
    pub bits: usize,
    /// A second key is announced.
    pub standby: bool,
    /// How long a key is announced before it is used, in operating time.
    pub hold_down: &'static str,
    /// How long ago the authority was made and its first statement issued.
    pub authority_age: Duration,
    /// The folder, which then stays; otherwise one that goes with the site.
    pub folder: Option<PathBuf>,
    /// The programs are those that can export spans.
    pub exporting_spans: bool,
    /// More lines for the gateway's file, each with its section: `("ingest.limits", "connections_per_ip = 3")`.
    pub gateway_lines: Vec<(&'static str, String)>,
}

impl Default for SiteOptions {
    fn default() -> Self {
        Self {
            custody: Custody::default(),
            sink: SinkKind::default(),
            keys: KeySource::default(),
            gateway_asks_kms: false,
            bits: 2048,
            standby: false,
            hold_down: "3d",
            authority_age: Duration::ZERO,
            folder: None,
            exporting_spans: false,
            gateway_lines: Vec::new(),
        }
    }
}

/// The site.
#[derive(Debug)]
pub struct Site {
    folder: PathBuf,
    options: SiteOptions,
    programs: Binaries,
    /// The CA of devices and gateway.
    pub ca: Ca,
    /// The CA of the decryptor.
    pub cloud_ca: Ca,
    /// Who signs statements.
    pub authority: Authority,
    /// The KMS, if the site has one.
    pub kms: Option<TestKms>,
    /// The wire between gateway and decryptor.
    pub link: Link,
    ports: Ports,
    gateway: Option<Program>,
    decryptor: Option<Program>,
    // Last, so that the programs are gone before their folder is.
    _temporary: Option<tempfile::TempDir>,
}

/// See [`Site::second_gateway`].
#[derive(Debug)]
pub struct SecondGateway {
    program: Option<Program>,
    config: PathBuf,
    address: SocketAddr,
    admin: SocketAddr,
    binary: PathBuf,
    log: PathBuf,
}

impl SecondGateway {
    /// Where devices connect to.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// The running program.
    ///
    /// # Panics
    /// If it does not run.
    pub fn program(&mut self) -> &mut Program {
        self.program.as_mut().expect("the second gateway runs")
    }

    /// Where its health is asked for.
    #[must_use]
    pub fn admin(&self) -> SocketAddr {
        self.admin
    }

    /// Its configuration file.
    #[must_use]
    pub fn config(&self) -> &Path {
        &self.config
    }

    /// Starts it and does not wait.
    pub fn launch(&mut self) -> anyhow::Result<&mut Program> {
        let arguments = ["run".as_ref(), "-c".as_ref(), self.config.as_os_str()];
        let started = Program::start(&self.binary, &arguments, &[], self.admin, &self.log)?;
        Ok(self.program.insert(started))
    }

    /// SIGKILL.
    pub async fn kill(&mut self) -> anyhow::Result<()> {
        self.program.take().context("the second gateway does not run")?.kill().await
    }

    /// SIGTERM; fails if it does not end well.
    pub async fn stop(&mut self) -> anyhow::Result<()> {
        stop(self.program.take().context("the second gateway does not run")?).await
    }

    /// Runs the gateway's program to its end, with this one's configuration.
    pub async fn command(&self, arguments: &[&str]) -> anyhow::Result<command::Finished> {
        let config = self.config.display().to_string();
        command::run(&self.binary, arguments.iter().copied().chain(["-c", &config]), &[]).await
    }
}

#[derive(Clone, Copy, Debug)]
struct Ports {
    gateway: SocketAddr,
    gateway_admin: SocketAddr,
    decryptor: SocketAddr,
    decryptor_admin: SocketAddr,
}

impl Site {
    /// Makes the folder with everything in it. Nothing runs yet.
    pub async fn create(options: SiteOptions) -> anyhow::Result<Self> {
        let programs = if options.exporting_spans { Binaries::exporting_spans()? } else { Binaries::get()? };
        let (folder, temporary) = match &options.folder {
            Some(folder) => (folder.clone(), None),
            None => {
                let temporary = tempfile::Builder::new().prefix("pithead-site-").tempdir()?;
                (temporary.path().to_owned(), Some(temporary))
            }
        };
        for below in ["cloud/data", "gateway/data", "devices", "certificates"] {
            fs::create_dir_all(folder.join(below)).with_context(|| folder.display().to_string())?;
        }
        let ports = Ports {
            gateway: free_address()?,
            gateway_admin: free_address()?,
            decryptor: free_address()?,
            decryptor_admin: free_address()?,
        };
        let ca = Ca::create(&format!("{SITE} site CA"), &folder.join("certificates/site-ca.pem"))?;
        let cloud_ca = Ca::create("cloud CA", &folder.join("certificates/cloud-ca.pem"))?;
        cloud_ca.server(None, &folder.join("cloud/server"))?;
        ca.server(Some(&format!("spiffe://{SITE}/gateway/{GATEWAY}")), &folder.join("gateway/gateway"))?;

        let at = UnixTime(now().as_secs().saturating_sub(options.authority_age.as_secs()));
        let (home, bits) = (folder.join("authority"), options.bits.min(3072));
        let authority = Authority::init(programs, &home, bits, options.hold_down, at).await?;
        let mut keys = vec![KmsKey::generate(KEY_ARN, options.bits)?];
        if options.standby {
            keys.push(KmsKey::generate(NEXT_KEY_ARN, options.bits)?);
        }
        first_statement(&authority, &folder, &keys, at).await?;
        let mut private = Vec::new();
        for (number, key) in (1..).zip(&keys) {
            if options.custody == Custody::Local {
                let path = folder.join(format!("cloud/private-{number}.pem"));
                fs::write(&path, key.private_pkcs8_pem()?)?;
                private.push((key.arn().to_owned(), path));
            }
        }
        let kms = match options.custody {
            Custody::Kms => Some(TestKms::start(keys).await?),
            Custody::Local => None,
        };
        let link = Link::start(free_address()?, ports.decryptor).await?;
        fs::copy(authority.root(), folder.join("gateway/root.cose"))?;
        fs::copy(authority.bundle(SITE), folder.join("gateway/bundle.pb"))?;
        fs::copy(ca.path(), folder.join("gateway/site-ca.pem"))?;
        fs::copy(ca.path(), folder.join("cloud/site-ca.pem"))?;
        fs::copy(cloud_ca.path(), folder.join("gateway/cloud-ca.pem"))?;

        let site = Self {
            folder,
            options,
            programs: programs.clone(),
            ca,
            cloud_ca,
            authority,
            kms,
            link,
            ports,
            gateway: None,
            decryptor: None,
            _temporary: temporary,
        };
        fs::write(site.decryptor_config(), site.decryptor_toml(&private))?;
        let endpoint = site.link.address();
        fs::write(site.gateway_config(), site.gateway_toml(endpoint))?;
        Ok(site)
    }

    /// [`Site::create`], and both programs running and ready.
    pub async fn start(options: SiteOptions) -> anyhow::Result<Self> {
        let mut site = Self::create(options).await?;
        site.start_decryptor().await?;
        site.start_gateway().await?;
        Ok(site)
    }

    /// The site's folder.
    #[must_use]
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// The programs that run here.
    #[must_use]
    pub fn programs(&self) -> &Binaries {
        &self.programs
    }

    /// The gateway's file.
    #[must_use]
    pub fn gateway_config(&self) -> PathBuf {
        self.folder.join("gateway/gateway.toml")
    }

    /// The decryptor's file.
    #[must_use]
    pub fn decryptor_config(&self) -> PathBuf {
        self.folder.join("cloud/decryptor.toml")
    }

    /// The gateway's data directory.
    #[must_use]
    pub fn gateway_data(&self) -> PathBuf {
        self.folder.join("gateway/data")
    }

    /// The decryptor's data directory.
    #[must_use]
    pub fn decryptor_data(&self) -> PathBuf {
        self.folder.join("cloud/data")
    }

    /// The private key's file, in local custody.
    #[must_use]
    pub fn private_key(&self) -> PathBuf {
        self.folder.join("cloud/private-1.pem")
    }

    /// The folder or the file of the sink.
    #[must_use]
    pub fn sink(&self) -> PathBuf {
        self.folder.join(match self.options.sink {
            SinkKind::Jsonl => "cloud/out.jsonl",
            SinkKind::Folder => "cloud/out",
        })
    }

    /// Where devices connect to.
    #[must_use]
    pub fn gateway_address(&self) -> SocketAddr {
        self.ports.gateway
    }

    /// Where the link connects to.
    #[must_use]
    pub fn decryptor_address(&self) -> SocketAddr {
        self.ports.decryptor
    }

    /// Where the gateway's health is asked for.
    #[must_use]
    pub fn gateway_admin(&self) -> SocketAddr {
        self.ports.gateway_admin
    }

    /// Where the decryptor's health is asked for.
    #[must_use]
    pub fn decryptor_admin(&self) -> SocketAddr {
        self.ports.decryptor_admin
    }

    fn environment(&self) -> Vec<(&'static str, String)> {
        self.kms.as_ref().map(TestKms::environment).unwrap_or_default()
    }

    /// Starts the gateway and waits until it is ready.
    pub async fn start_gateway(&mut self) -> anyhow::Result<()> {
        self.launch_gateway()?.ready().await
    }

    /// Starts the gateway and does not wait.
    pub fn launch_gateway(&mut self) -> anyhow::Result<&mut Program> {
        let (program, config) = (self.programs.gateway(), self.gateway_config());
        let started = self.launch(&program, &config, self.ports.gateway_admin, "gateway.log")?;
        Ok(self.gateway.insert(started))
    }

    /// Takes a gateway over that was started in a way of its own, with the site's configuration.
    pub fn adopt_gateway(&mut self, program: Program) -> &mut Program {
        self.gateway.insert(program)
    }

    /// Starts the decryptor and waits until it is ready.
    pub async fn start_decryptor(&mut self) -> anyhow::Result<()> {
        self.launch_decryptor()?.ready().await
    }

    /// Starts the decryptor and does not wait.
    pub fn launch_decryptor(&mut self) -> anyhow::Result<&mut Program> {
        let (program, config) = (self.programs.decryptor(), self.decryptor_config());
        let started = self.launch(&program, &config, self.ports.decryptor_admin, "decryptor.log")?;
        Ok(self.decryptor.insert(started))
    }

    fn launch(&self, program: &Path, config: &Path, admin: SocketAddr, log: &str) -> anyhow::Result<Program> {
        let arguments = ["run".as_ref(), "-c".as_ref(), config.as_os_str()];
        Program::start(program, &arguments, &self.environment(), admin, &self.folder.join(log))
    }

    /// The running gateway.
    pub fn gateway(&mut self) -> anyhow::Result<&mut Program> {
        self.gateway.as_mut().context("the gateway does not run")
    }

    /// The running decryptor.
    pub fn decryptor(&mut self) -> anyhow::Result<&mut Program> {
        self.decryptor.as_mut().context("the decryptor does not run")
    }

    /// SIGKILL.
    pub async fn kill_gateway(&mut self) -> anyhow::Result<()> {
        self.gateway.take().context("the gateway does not run")?.kill().await
    }

    /// SIGKILL.
    pub async fn kill_decryptor(&mut self) -> anyhow::Result<()> {
        self.decryptor.take().context("the decryptor does not run")?.kill().await
    }

    /// SIGTERM to the gateway; fails if it does not end well.
    pub async fn stop_gateway(&mut self) -> anyhow::Result<()> {
        stop(self.gateway.take().context("the gateway does not run")?).await
    }

    /// SIGTERM to whatever runs, the gateway first; fails if one does not end well.
    pub async fn stop(&mut self) -> anyhow::Result<()> {
        for program in [self.gateway.take(), self.decryptor.take()].into_iter().flatten() {
            stop(program).await?;
        }
        Ok(())
    }

    /// Runs the gateway's program to its end, with its configuration: `["config", "check"]`.
    pub async fn gateway_command(&self, arguments: &[&str]) -> anyhow::Result<command::Finished> {
        let config = self.gateway_config().display().to_string();
        let arguments = arguments.iter().copied().chain(["-c", &config]);
        command::run(&self.programs.gateway(), arguments, &self.environment()).await
    }

    /// Runs the decryptor's program to its end, with these arguments alone.
    pub async fn decryptor_command(&self, arguments: &[&str]) -> anyhow::Result<command::Finished> {
        command::run(&self.programs.decryptor(), arguments, &self.environment()).await
    }

    /// A second gateway of the site beside the first, running: its own name, certificate, data and ports, and the same
    /// authority and decryptor.
    pub async fn second_gateway(&self, name: &str) -> anyhow::Result<SecondGateway> {
        let mut second = self.create_second_gateway(name)?;
        second.launch()?.ready().await?;
        Ok(second)
    }

    /// The same, and it does not run yet.
    pub fn create_second_gateway(&self, name: &str) -> anyhow::Result<SecondGateway> {
        let folder = self.folder.join(name);
        fs::create_dir_all(folder.join("data"))?;
        for file in ["root.cose", "bundle.pb", "site-ca.pem", "cloud-ca.pem"] {
            fs::copy(self.folder.join("gateway").join(file), folder.join(file)).context(file)?;
        }
        self.ca.server(Some(&format!("spiffe://{SITE}/gateway/{name}")), &folder.join("gateway"))?;
        let (address, admin) = (free_address()?, free_address()?);
        let text = self
            .gateway_toml(self.link.address())
            .replace(&self.ports.gateway.to_string(), &address.to_string())
            .replace(&self.ports.gateway_admin.to_string(), &admin.to_string());
        let config = folder.join("gateway.toml");
        fs::write(&config, text)?;
        let log = self.folder.join(format!("{name}.log"));
        Ok(SecondGateway { program: None, config, address, admin, binary: self.programs.gateway(), log })
    }

    /// `device ...` at the decryptor: its registry of device keys.
    pub async fn device_command(&self, arguments: &[&str]) -> anyhow::Result<command::Finished> {
        let config = self.decryptor_config().display().to_string();
        self.decryptor_command(&[&["device"], arguments, &["-c", &config]].concat()).await
    }

    /// The cloud registers a device's key, as the device wrote it.
    pub async fn add_key_of(&self, device: &Device, more: &[&str]) -> anyhow::Result<()> {
        let name = format!("{SITE}/{}", device.name());
        let key = device.public_key().display().to_string();
        self.device_command(&[&["add", &name, "--key", &key], more].concat()).await?.ok().map(drop)
    }

    /// The same, and the running decryptor has taken it in.
    pub async fn register(&mut self, device: &Device, more: &[&str]) -> anyhow::Result<()> {
        self.add_key_of(device, more).await?;
        self.until_registry_is_read().await
    }

    /// Waits until the running decryptor goes by the registry of device keys as it lies on disk.
    pub async fn until_registry_is_read(&mut self) -> anyhow::Result<()> {
        let listed: serde_json::Value = self.device_command(&["list", "-o", "json"]).await?.ok()?.json()?;
        let keys = listed["devices"].as_array().into_iter().flatten().flat_map(|device| {
            let keys = device["keys"].as_array().into_iter().flatten();
            keys.filter(|key| key["revoked"].is_null())
        });
        let expected = keys.count() as f64;
        self.decryptor()?
            .until("has read the registry of devices", async |admin| {
                admin.metric("pithead_decryptor_device_keys").await.is_ok_and(|keys| keys == expected)
            })
            .await
    }

    /// Enrols a device with the real tool, with a certificate of the site's CA and without a bundle: its first key comes
    /// from the gateway.
    pub async fn enroll(&self, name: &str) -> anyhow::Result<Device> {
        self.enroll_with(name, &[]).await
    }

    /// The same with further arguments, such as `--bundle FILE`.
    pub async fn enroll_with(&self, name: &str, more: &[&str]) -> anyhow::Result<Device> {
        let identity = self.identity_of(name)?;
        let (device, finished) = self.enroll_as(name, self.ca.path(), Some(&identity), more).await?;
        finished.ok()?;
        Ok(device)
    }

    /// A certificate of the site's CA for a device.
    pub fn identity_of(&self, name: &str) -> anyhow::Result<Certificate> {
        let stem = self.folder.join("certificates").join(name);
        self.ca.client(&format!("spiffe://{SITE}/device/{name}"), &stem)
    }

    /// Enrols a device with any CA for the gateway and any certificate, or none; however that ends.
    pub async fn enroll_as(
        &self,
        name: &str,
        ca: &Path,
        identity: Option<&Certificate>,
        more: &[&str],
    ) -> anyhow::Result<(Device, command::Finished)> {
        let folder = self.folder.join("devices").join(name);
        let text = |path: &Path| path.display().to_string();
        let mut arguments = vec![
            ("--dir", text(&folder)),
            ("--site", SITE.to_owned()),
            ("--device", name.to_owned()),
            ("--authority", AUTHORITY.to_owned()),
            ("--root", text(&self.authority.root())),
            ("--gateway", self.ports.gateway.to_string()),
            ("--ca", text(ca)),
        ];
        if let Some(files) = identity {
            arguments.extend([("--cert", text(&files.certificate)), ("--key", text(&files.key))]);
        }
        let flat = arguments.iter().flat_map(|(name, value)| [*name, value.as_str()]);
        let arguments = std::iter::once("enroll").chain(flat).chain(more.iter().copied());
        let finished = command::run(&self.programs.device(), arguments, &[]).await?;
        Ok((Device::new(name, folder, &self.programs), finished))
    }

    /// The device in the folder of that name, enrolled or not.
    #[must_use]
    pub fn device(&self, name: &str) -> Device {
        Device::new(name, self.folder.join("devices").join(name), &self.programs)
    }

    /// What the sink holds.
    pub fn delivered(&self) -> anyhow::Result<Delivered> {
        match self.options.sink {
            SinkKind::Jsonl => Delivered::from_jsonl(&self.sink()),
            SinkKind::Folder => Delivered::from_folder(&self.sink()),
        }
    }

    /// Waits until the decryptor has acknowledged everything that the gateway holds: nothing waits in its spool.
    pub async fn until_relayed(&mut self) -> anyhow::Result<()> {
        let gateway = self.gateway()?;
        gateway
            .until("has passed everything on", async |admin| {
                matches!(admin.metric("pithead_spool_records").await, Ok(0.0))
            })
            .await
    }

    /// The ends of both logs, for a person.
    #[must_use]
    pub fn log_tails(&self) -> String {
        let mut text = String::new();
        for name in ["gateway.log", "decryptor.log"] {
            let log = fs::read_to_string(self.folder.join(name)).unwrap_or_default();
            let lines: Vec<&str> = log.lines().collect();
            // Writing to a String does not fail.
            let _ =
                writeln!(text, "--- {name} ends:\n{}", lines[lines.len().saturating_sub(25)..].join("\n"));
        }
        text
    }

    /// Replaces `from`, which must be there, in a configuration file.
    pub fn edit(config: &Path, from: &str, to: &str) -> anyhow::Result<()> {
        let text = fs::read_to_string(config).with_context(|| config.display().to_string())?;
        anyhow::ensure!(text.contains(from), "{} has no `{from}`", config.display());
        fs::write(config, text.replacen(from, to, 1)).with_context(|| config.display().to_string())
    }

    /// Writes the gateway's file anew so that it reaches the decryptor without the link: for a site that outlives this
    /// process.
    pub fn take_the_link_out(&self) -> anyhow::Result<()> {
        fs::write(self.gateway_config(), self.gateway_toml(self.ports.decryptor))
            .context("the gateway's file")
    }

    fn decryptor_toml(&self, private: &[(String, PathBuf)]) -> String {
        let Ports { decryptor, decryptor_admin, .. } = self.ports;
        let (kind, path) = match self.options.sink {
            SinkKind::Jsonl => ("jsonl", "out.jsonl"),
            SinkKind::Folder => ("folder", "out"),
        };
        let mut text = format!(
            "[decryptor]\ndata_dir = \"data\"\ncertificate = \"server.pem\"\nprivate_key = \"server.key\"\n\n\
             [ingest]\nlisten = \"{decryptor}\"\n\n\
             [[site]]\nname = \"{SITE}\"\nca = \"site-ca.pem\"\n\n\
             [keys]\nbundles = [\"../authority/bundles/{SITE}.pb\"]\npoll = \"1s\"\n\n\
             [sink]\nkind = \"{kind}\"\npath = \"{path}\"\n\n\
             [admin]\nlisten = \"{decryptor_admin}\"\n\n\
             [unwrap]\nkms = {}\n",
            self.options.custody == Custody::Kms,
        );
        for (arn, path) in private {
            let file = path.file_name().unwrap_or_default().to_string_lossy();
            // Writing to a String does not fail.
            let _ = write!(text, "\n[[unwrap.local]]\narn = \"{arn}\"\nprivate_key = \"{file}\"\n");
        }
        text
    }

    fn gateway_toml(&self, decryptor: SocketAddr) -> String {
        let Ports { gateway, gateway_admin, .. } = self.ports;
        let keys = match self.options.keys {
            KeySource::Upstream => format!("upstream = \"{decryptor}\"\nupstream_ca = \"cloud-ca.pem\"\n"),
            KeySource::Bundle => "bundle = \"bundle.pb\"\n".to_owned(),
        };
        let mut sections = vec![
            (
                "gateway",
                format!(
                    "site = \"{SITE}\"\ndata_dir = \"data\"\ncertificate = \"gateway.pem\"\n\
                     private_key = \"gateway.key\"\n"
                ),
            ),
            ("trust", format!("authority = \"{AUTHORITY}\"\nroot = \"root.cose\"\n")),
            ("keys", format!("{keys}kms = {}\n", self.options.gateway_asks_kms)),
            ("ingest", format!("listen = \"{gateway}\"\ndevice_ca = \"site-ca.pem\"\n")),
            // All devices of a test share the address 127.0.0.1.
            (
                "ingest.limits",
                "connections_per_ip = 8192\nconnections_per_second_per_ip = 8192\n\
                 connection_burst_per_ip = 8192\n"
                    .to_owned(),
            ),
            // A program on loopback sends faster than any truck may.
            ("ingest.per_device", "rate = \"1TiB\"\nburst = \"1TiB\"\n".to_owned()),
            // Small segments: a test need not lay out 32 MiB of zeroes.
            ("spool", "max_size = \"2GiB\"\nsegment_size = \"5MiB\"\n".to_owned()),
            ("relay", format!("endpoint = \"{decryptor}\"\nca = \"cloud-ca.pem\"\n")),
            ("admin", format!("listen = \"{gateway_admin}\"\n")),
        ];
        for (section, line) in &self.options.gateway_lines {
            match sections.iter_mut().find(|(name, _)| name == section) {
                Some((_, lines)) => {
                    // Writing to a String does not fail.
                    let _ = writeln!(lines, "{line}");
                }
                None => sections.push((section, format!("{line}\n"))),
            }
        }
        sections.iter().map(|(name, lines)| format!("[{name}]\n{lines}\n")).collect()
    }
}

async fn stop(program: Program) -> anyhow::Result<()> {
    let name = program.name().to_owned();
    let status = program.stop().await?;
    anyhow::ensure!(status.success(), "{name} ended with {status} after SIGTERM");
    Ok(())
}

async fn first_statement(
    authority: &Authority,
    folder: &Path,
    keys: &[KmsKey],
    at: UnixTime,
) -> anyhow::Result<()> {
    let mut arguments = vec!["--now".to_owned(), at.as_secs().to_string()];
    for (number, key) in (1..).zip(keys) {
        let spki = folder.join(format!("cloud/public-{number}.pem"));
        fs::write(&spki, key.spki_pem())?;
        let named = if number == 1 { "--key" } else { "--next-key" };
        arguments.extend([named.to_owned(), format!("{}={}", key.arn(), spki.display())]);
    }
    if keys.len() == 1 {
        arguments.push("--no-standby".into());
    }
    authority.statement(SITE, &arguments).await?.ok()?;
    Ok(())
}
