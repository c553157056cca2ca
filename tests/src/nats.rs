//! Real `nats-server` processes on loopback, one or a cluster of three, each with JetStream that syncs before it acknowledges.
//!
//! With [`NatsOptions::wired`] there is a piece of wire ([`crate::link`]) between any two of them, and between each and whoever is at home
//! at another one: so one can be cut off with all that is at home there ([`Nats::cut_off`]).
//!
//! The binary is `PITHEAD_NATS_SERVER`, or what `tests/nats/get` has put into `target/nats`. Tests that need it are skipped where it is
//! missing, and say so; where `CI` is `true` they fail.

use std::{
    env, fs,
    net::SocketAddr,
    path::{Path, PathBuf},
};

use anyhow::Context as _;
use rustix::process::Signal;

use crate::{
    binaries::workspace,
    link::Link,
    program::{Program, free_address},
};

/// Where the binary is, if it is here. Says so where it is not.
///
/// # Panics
/// Where it is missing and `CI` is `true`: there nothing is skipped.
#[must_use]
pub fn binary() -> Option<PathBuf> {
    let found = match env::var_os("PITHEAD_NATS_SERVER") {
        Some(path) => PathBuf::from(path),
        None => {
            let target =
                env::var_os("CARGO_TARGET_DIR").map_or_else(|| workspace().join("target"), PathBuf::from);
            target.join("nats/venv/bin/nats-server")
        }
    };
    if found.is_file() {
        return Some(found);
    }
    let ci = env::var_os("CI").is_some_and(|value| value == "true");
    assert!(!ci, "{} is missing, and CI skips nothing: tests/nats/get", found.display());
    skipped(&found);
    None
}

#[expect(clippy::print_stderr, reason = "whoever runs the tests has to see it")]
fn skipped(binary: &Path) {
    eprintln!("SKIPPED: {} is missing (tests/nats/get puts it there)", binary.display());
}

/// One or several servers. Killed when this is dropped.
#[derive(Debug)]
pub struct Nats {
    binary: PathBuf,
    folder: PathBuf,
    servers: Vec<Server>,
    wires: Vec<Wire>,
}

/// What one end is connected to the other end's server by.
#[derive(Debug)]
struct Wire {
    from: usize,
    to: usize,
    route: Link,
    client: Link,
}

/// How somebody is cut off.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cut {
    /// Nothing arrives, and nobody is told: a cable, a switch without power.
    Silent,
    /// Connections are reset, and new ones too: a switch that is there and does not forward.
    Reset,
}

impl Cut {
    /// Cuts this piece of wire; [`Link::heal`] mends it.
    pub fn apply(self, link: &Link) {
        match self {
            Self::Silent => link.silence(),
            Self::Reset => link.cut(),
        }
    }
}

#[derive(Debug)]
struct Server {
    config: PathBuf,
    client: SocketAddr,
    monitor: SocketAddr,
    program: Option<Program>,
}

/// What differs from how it has to be.
#[derive(Clone, Copy, Debug)]
pub struct NatsOptions {
    /// How many servers.
    pub servers: usize,
    /// `sync_interval`, as it stands in the file; nothing is the server's own default.
    pub sync: Option<&'static str>,
    /// `max_payload`, as it stands in the file.
    pub max_payload: &'static str,
    /// Whether wires lie between them.
    pub wired: bool,
}

impl Default for NatsOptions {
    fn default() -> Self {
        Self { servers: 3, sync: Some("always"), max_payload: "4MB", wired: false }
    }
}

impl Nats {
    /// Starts them, with their files below `folder`, and waits until each says that it is well.
    pub async fn start(binary: PathBuf, folder: &Path, options: NatsOptions) -> anyhow::Result<Self> {
        let mut routes = Vec::new();
        for _ in 0..options.servers {
            routes.push(free_address()?);
        }
        let clients = routes.iter().map(|_| free_address()).collect::<Result<Vec<_>, _>>()?;
        let mut wires = Vec::new();
        for (from, to) in pairs(if options.wired { options.servers } else { 0 }) {
            let any = SocketAddr::from(([127, 0, 0, 1], 0));
            let (route, client) = (Link::start(any, routes[to]).await?, Link::start(any, clients[to]).await?);
            wires.push(Wire { from, to, route, client });
        }
        let mut servers = Vec::new();
        for (number, route) in (1..).zip(&routes) {
            let (client, monitor) = (clients[number - 1], free_address()?);
            let name = format!("nats-{number}");
            let store = folder.join(&name);
            fs::create_dir_all(&store)?;
            let sync = options.sync.map_or_else(String::new, |sync| format!(", sync_interval: {sync}"));
            let mut text = format!(
                "server_name: {name}\nlisten: \"{client}\"\nhttp: \"{monitor}\"\nmax_payload: {}\n\
                 jetstream {{ store_dir: \"{}\", max_mem: 64MB, max_file: 64GB{sync} }}\n",
                options.max_payload,
                store.display(),
            );
            if options.servers > 1 {
                let by_wire =
                    wires.iter().filter(|wire| wire.from == number - 1).map(|wire| wire.route.address());
                let others: Vec<SocketAddr> = if options.wired { by_wire.collect() } else { routes.clone() };
                let others = others.iter().map(|route| format!("\"nats://{route}\"")).collect::<Vec<_>>();
                // What they tell each other, and clients, of where they are would lead around the wires.
                let silent =
                    if options.wired { "no_advertise: true, advertise: \"127.0.0.1:1\", " } else { "" };
                text += &format!(
                    "cluster {{ name: pit, listen: \"{route}\", {silent}routes: [{}] }}\n",
                    others.join(", ")
                );
            }
            let config = folder.join(format!("{name}.conf"));
            fs::write(&config, text)?;
            servers.push(Server { config, client, monitor, program: None });
        }
        let mut nats = Self { binary, folder: folder.to_owned(), servers, wires };
        for at in 0..nats.servers.len() {
            nats.launch(at)?;
        }
        for at in 0..nats.servers.len() {
            nats.healthy(at).await?;
        }
        Ok(nats)
    }

    /// How many servers there are, running or not.
    #[must_use]
    pub fn len(&self) -> usize {
        self.servers.len()
    }

    /// Never: somebody started them.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.servers.is_empty()
    }

    /// Starts one that does not run, and does not wait.
    pub fn launch(&mut self, at: usize) -> anyhow::Result<()> {
        let server = &mut self.servers[at];
        let log = self.folder.join(format!("nats-{}.log", at + 1));
        let arguments = ["-c".as_ref(), server.config.as_os_str()];
        server.program = Some(Program::start(&self.binary, &arguments, &[], server.monitor, &log)?);
        Ok(())
    }

    /// Waits until one that runs says that it is well, with its streams.
    pub async fn healthy(&mut self, at: usize) -> anyhow::Result<()> {
        self.program(at)?
            .until("is well", async |admin| {
                admin.get("/healthz").await.is_ok_and(|reply| reply.status == 200)
            })
            .await
    }

    fn program(&mut self, at: usize) -> anyhow::Result<&mut Program> {
        self.servers[at].program.as_mut().context("this server does not run")
    }

    /// SIGKILL.
    pub async fn kill(&mut self, at: usize) -> anyhow::Result<()> {
        self.servers[at].program.take().context("this server does not run")?.kill().await
    }

    /// Stops in its tracks: its sockets stay open, and nothing comes of them. As a machine behind a cable that was cut.
    pub fn freeze(&mut self, at: usize) -> anyhow::Result<()> {
        self.program(at)?.signal(Signal::STOP)
    }

    /// Goes on.
    pub fn thaw(&mut self, at: usize) -> anyhow::Result<()> {
        self.program(at)?.signal(Signal::CONT)
    }

    /// Where clients connect.
    #[must_use]
    pub fn client(&self, at: usize) -> SocketAddr {
        self.servers[at].client
    }

    /// `[spool.jetstream]` of a gateway that uses them.
    #[must_use]
    pub fn section(&self) -> String {
        self.section_of(self.servers.iter().map(|server| server.client))
    }

    /// The same of one that is at home at this server, and reaches the others by wire.
    #[must_use]
    pub fn section_at(&self, home: usize) -> String {
        let by_wire = self.wires.iter().filter(|wire| wire.from == home).map(|wire| wire.client.address());
        self.section_of([self.servers[home].client].into_iter().chain(by_wire))
    }

    fn section_of(&self, clients: impl Iterator<Item = SocketAddr>) -> String {
        let all =
            |all: Vec<String>| all.iter().map(|one| format!("\"{one}\"")).collect::<Vec<_>>().join(", ");
        format!(
            "servers = [{}]\nreplicas = {}\nmonitor = [{}]",
            all(clients.map(|client| format!("nats://{client}")).collect()),
            self.servers.len(),
            all(self.servers.iter().map(|server| server.monitor.to_string()).collect()),
        )
    }

    /// Cuts a server off from the others, and whoever is at home there too.
    pub fn cut_off(&self, at: usize, cut: Cut) {
        for wire in self.wires.iter().filter(|wire| wire.from == at || wire.to == at) {
            cut.apply(&wire.route);
            cut.apply(&wire.client);
        }
    }

    /// Mends every wire.
    pub fn heal(&self) {
        for wire in &self.wires {
            wire.route.heal();
            wire.client.heal();
        }
    }
}

/// Any two, in either direction.
fn pairs(count: usize) -> impl Iterator<Item = (usize, usize)> {
    (0..count).flat_map(move |from| (0..count).filter(move |to| *to != from).map(move |to| (from, to)))
}
